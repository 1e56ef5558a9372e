"""Merging methods: a method is a pure function, one line in `METHODS` and one row in the tests.

The table names its functions by "module:name", so that methods are listed and described without importing torch.
"""

from __future__ import annotations

from functools import partial

from merge.methods import shortcuts
from merge.methods.method import Mergekit, Method, Parameter

RATIO = Parameter("share of the second checkpoint", low=0.0, high=1.0, example=0.3)
WEIGHTS = Parameter("share of each checkpoint", low=0.0, high=1.0, each=True, simplex=True)
SCALE = Parameter("multiplier of the summed task vectors", example=0.3)
FACTORS = Parameter("multiplier of each task vector", default=1.0, each=True)
UNIT = Parameter("multiplier of the summed task vectors", default=1.0)
DENSITY = Parameter("part of each task vector that is kept", low=0.0, high=1.0, each=True, example=0.2)
EPSILON = Parameter(
    "how far the density of a row's smallest and largest lie from the middle", 0.15, 0.0, 1.0, each=True
)
GAMMA = Parameter("part of each task vector left out as outliers", 0.01, 0.0, 1.0, each=True)
SEED = Parameter("seed of the random numbers, with each tensor's name", default=0, kind=int)
RELATIVE = Parameter("weight of each checkpoint, relative to their sum", default=1.0, each=True, relative=True)
NORMALIZE = Parameter("divide by the sum of the weights that agree", default=True, kind=bool)
RESCALE = Parameter("divide what is kept by its probability", default=True, kind=bool)
RESCALE_L1 = Parameter("restore each task vector's L1 norm instead", default=False, kind=bool)
FLATTEN = Parameter("take whole tensors as vectors", default=True, kind=bool)
ROW_WISE = Parameter("without flatten: vectors along the first axis, not the last", default=False, kind=bool)
THRESHOLD = Parameter("smallest change that counts", default=1e-5, low=0.0)
FLOOR = Parameter("smallest statistic", default=1e-6, low=0.0)

TRIMMED = {"density": DENSITY, "weights": FACTORS, "scale": UNIT, "rescale_l1": RESCALE_L1}
RANDOM = {**TRIMMED, "rescale": RESCALE, "seed": SEED}

# mergekit's words for parameters, with ours and mergekit's defaults.
WEIGHT = {"weight": ("weights", None)}
TRIM = {**WEIGHT, "density": ("density", 1.0)}
RANKED = {**TRIM, "epsilon": ("epsilon", 0.15)}
MIDDLE = {**TRIM, "gamma": ("gamma", 0.01)}
LAMBDA = {"lambda": ("scale", 1.0)}
SPARSE = {**LAMBDA, "rescale": ("rescale_l1", False)}
DROP = {**LAMBDA, "rescale": ("rescale_l1", True)}
ELECT = ("normalize", False)
UNSCALED = {"rescale": False}
NUSLERP = Mergekit(WEIGHT, {"nuslerp_flatten": ("flatten", True), "nuslerp_row_wise": ("row_wise", False)})
MULTISLERP = Mergekit(WEIGHT, relative=("normalize_weights", True))

TIES = "TIES, arXiv 2306.01708"
DARE = "DARE, arXiv 2311.03099"
DELLA = "DELLA, arXiv 2406.11617"
CRUMBS = "Model Breadcrumbs, arXiv 2312.06795"
COPIED = "all weight on one input copies its bits"
AT_CUT = "of equal magnitudes at the cut the lowest index is kept"
TIE_UP = "a sum of exactly 0 elects +"
ONE_LINE = "vectors on one line (within 1e-6) or zero: linear; nearly opposite ones grow, 16 bits may not hold them"

METHODS: dict[str, Method] = {
    "interpolate": Method(
        "merge.methods.linear:interpolate",
        "The straight line between two checkpoints; the ratio is the share of the second.",
        "(1 - ratio) * A + ratio * B",
        "UnIVAL, arXiv 2307.16184, section 5",
        {"ratio": RATIO},
        elementwise=True,
        inputs=(2, 2),
        lerp=shortcuts.always,
        single=shortcuts.by_ratio,
        edges=f"equal elements stay equal; {COPIED}",
        group="straight lines",
    ),
    "average": Method(
        "merge.methods.linear:average",
        "The weighted average of checkpoints; with equal weights a uniform soup.",
        "sum_i weights_i * X_i",
        "Model soups, arXiv 2203.05482",
        {"weights": WEIGHTS},
        elementwise=True,
        lerp=shortcuts.two_inputs,
        single=shortcuts.one_input,
        edges=f"equal elements stay equal; {COPIED}",
        group="straight lines",
    ),
    "task-arithmetic": Method(
        "merge.methods.linear:task_arithmetic",
        "The base plus the experts' task vectors, each times its weight and the scale.",
        "base + scale * sum_i weights_i * (X_i - base)",
        "Task arithmetic, arXiv 2212.04089",
        {"scale": SCALE, "weights": FACTORS},
        takes_base=True,
        elementwise=True,
        inputs=(1, None),
        lerp=shortcuts.one_expert,
        single=shortcuts.by_scale,
        edges="entries equal to the base stay; scale 0 is the base, one expert at scale 1 that expert, to the bit",
        group="straight lines",
        mergekit={"task_arithmetic": Mergekit(WEIGHT, LAMBDA, relative=ELECT)},
    ),
    "linear": Method(
        "merge.methods.sums:linear",
        "A weighted sum whose weights may have any sum, as mergekit computes it.",
        "sum_i weights_i * X_i / sum_i weights_i; without normalize undivided",
        "mergekit, arXiv 2403.13257",
        {"weights": RELATIVE, "normalize": Parameter("divide by the sum of the weights", default=True, kind=bool)},
        elementwise=True,
        inputs=(1, None),
        single=shortcuts.one_input,
        edges="weights of sum 0 are an error; equal elements stay equal if normalized",
        group="straight lines",
        mergekit={
            "linear": Mergekit(WEIGHT, {"normalize": ("normalize", True)}),
            "passthrough": Mergekit({"scale": ("weights", 1.0)}, fixed={"normalize": False}, alone=True),
        },
    ),
    "slerp": Method(
        "merge.methods.spherical:slerp",
        "The great circle between two checkpoints; the ratio is the share of the second.",
        "sin((1 - ratio) w) / sin(w) * A + sin(ratio w) / sin(w) * B, w the angle between A and B",
        "Shoemake 1985",
        {"ratio": RATIO},
        inputs=(2, 2),
        single=shortcuts.by_ratio,
        edges="linear where |cos| > 0.9995 or a tensor is zero; " + COPIED,
        group="great circles",
        mergekit={"slerp": Mergekit(whole={"t": ("ratio", None)}, base_first=True)},
    ),
    "nuslerp": Method(
        "merge.methods.spherical:nuslerp",
        "The great circle between two checkpoints by their weights, of tensors, rows or columns.",
        "slerp(A, B) at ratio weights_2 / (weights_1 + weights_2), of whole tensors or of their vectors",
        "NuSLERP, mergekit 2024",
        {"weights": RELATIVE, "flatten": FLATTEN, "row_wise": ROW_WISE},
        inputs=(2, 2),
        single=partial(shortcuts.one_input, relative=True),
        edges=ONE_LINE,
        group="great circles",
        mergekit={"nuslerp": NUSLERP},
    ),
    "nuslerp-base": Method(
        "merge.methods.spherical:nuslerp_base",
        "The great circle between two task vectors by their weights, added to the base.",
        "base + nuslerp(A - base, B - base)",
        "NuSLERP, mergekit 2024",
        {"weights": RELATIVE, "flatten": FLATTEN, "row_wise": ROW_WISE},
        takes_base=True,
        inputs=(2, 2),
        single=partial(shortcuts.one_input, relative=True),
        edges=ONE_LINE,
        group="great circles",
        mergekit={"nuslerp": NUSLERP},
    ),
    "multislerp": Method(
        "merge.methods.spherical:multislerp",
        "The mean direction of several checkpoints in one step on the sphere, at their mean length.",
        "exp_m(sum_i weights_i * log_m(X_i / |X_i|)) * sum_i weights_i * |X_i|, m the normalized mean direction",
        "Multi-SLERP, mergekit 2025",
        {"weights": WEIGHTS},
        single=shortcuts.one_input,
        edges="directions that balance out are an error; a zero tensor has no direction, its length counts",
        group="great circles",
        mergekit={"multislerp": MULTISLERP},
    ),
    "multislerp-base": Method(
        "merge.methods.spherical:multislerp_base",
        "The mean direction of several task vectors in one step on the sphere, added to the base.",
        "base + multislerp(X_i - base)",
        "Multi-SLERP, mergekit 2025",
        {"weights": WEIGHTS},
        takes_base=True,
        single=shortcuts.one_input,
        edges="as multislerp",
        group="great circles",
        mergekit={"multislerp": MULTISLERP},
    ),
    "karcher": Method(
        "merge.methods.spherical:karcher",
        "The mean direction of several checkpoints on the sphere, iterated, at their mean length.",
        "the m of least sum_i weights_i * angle(m, X_i)^2, times sum_i weights_i * |X_i|",
        "Karcher 1977; mergekit 2025",
        {
            "weights": WEIGHTS,
            "iterations": Parameter("most steps on the sphere", default=10, low=1, kind=int),
            "tolerance": Parameter("length of the last step, in radians", default=1e-5, low=0.0),
        },
        single=shortcuts.one_input,
        edges="where directions balance out the search starts at the first; a zero tensor's length counts",
        group="great circles",
        mergekit={"karcher": Mergekit(whole={"max_iter": ("iterations", 10), "tol": ("tolerance", 1e-5)})},
    ),
    "ties": Method(
        "merge.methods.sparse:ties",
        "Keep each task vector's largest entries, elect a sign per entry, average those that agree.",
        "base + scale * mean of the agreeing weights_i * top(X_i - base), agreeing: sign of sum_i",
        TIES,
        {**TRIMMED, "normalize": NORMALIZE},
        takes_base=True,
        inputs=(1, None),
        single=shortcuts.by_density,
        edges=f"{AT_CUT}; at least one entry is kept; {TIE_UP}",
        group="sparse task vectors",
        mergekit={"ties": Mergekit(TRIM, {**SPARSE, "normalize": ("normalize", True)})},
    ),
    "dare-linear": Method(
        "merge.methods.sparse:dare_linear",
        "Drop random entries of each task vector, scale up the rest and add them to the base.",
        "base + scale * sum_i weights_i * mask_i * (X_i - base) / density_i, mask_i Bernoulli(density_i)",
        DARE,
        RANDOM,
        takes_base=True,
        inputs=(1, None),
        single=shortcuts.by_density,
        edges="masks depend on seed, tensor name and order of the experts alone",
        group="sparse task vectors",
        mergekit={"dare_linear": Mergekit(TRIM, DROP, UNSCALED, ELECT)},
    ),
    "dare-ties": Method(
        "merge.methods.sparse:dare_ties",
        "Drop random entries of each task vector as dare-linear, then elect signs as ties.",
        "as ties, with DARE's masks for top",
        DARE,
        {**RANDOM, "normalize": NORMALIZE},
        takes_base=True,
        inputs=(1, None),
        single=shortcuts.by_density,
        edges=TIE_UP,
        group="sparse task vectors",
        mergekit={"dare_ties": Mergekit(TRIM, {**DROP, "normalize": ELECT}, UNSCALED)},
    ),
    "della-linear": Method(
        "merge.methods.sparse:della_linear",
        "Drop random entries of each task vector, small ones more often, and add the rest.",
        "as dare-linear, the probability rising with the rank in the row from density - epsilon to density + epsilon",
        DELLA,
        {**RANDOM, "epsilon": EPSILON},
        takes_base=True,
        inputs=(1, None),
        single=shortcuts.by_density,
        edges="of equal magnitudes the lower index ranks lower; a row's only entry has the density",
        group="sparse task vectors",
        mergekit={"della_linear": Mergekit(RANKED, DROP, UNSCALED, ELECT)},
    ),
    "della": Method(
        "merge.methods.sparse:della",
        "Drop random entries of each task vector, small ones more often, then elect signs as ties.",
        "as ties, with DELLA's masks for top",
        DELLA,
        {**RANDOM, "epsilon": EPSILON, "normalize": NORMALIZE},
        takes_base=True,
        inputs=(1, None),
        single=shortcuts.by_density,
        edges=TIE_UP,
        group="sparse task vectors",
        mergekit={"della": Mergekit(RANKED, {**DROP, "normalize": ("normalize", True)}, UNSCALED)},
    ),
    "breadcrumbs": Method(
        "merge.methods.sparse:breadcrumbs",
        "Leave out the largest and smallest entries of each task vector and add the rest.",
        "base + scale * sum_i weights_i * middle(X_i - base), without the gamma largest, density remaining",
        CRUMBS,
        {**TRIMMED, "gamma": GAMMA},
        takes_base=True,
        inputs=(1, None),
        single=shortcuts.by_density,
        edges="of equal magnitudes the lower index is the larger; density has priority over gamma",
        group="sparse task vectors",
        mergekit={"breadcrumbs": Mergekit(MIDDLE, SPARSE, relative=ELECT)},
    ),
    "breadcrumbs-ties": Method(
        "merge.methods.sparse:breadcrumbs_ties",
        "Leave out the largest and smallest entries of each task vector, then elect signs as ties.",
        "as ties, with breadcrumbs' middle for top",
        CRUMBS,
        {**TRIMMED, "gamma": GAMMA, "normalize": NORMALIZE},
        takes_base=True,
        inputs=(1, None),
        single=shortcuts.by_density,
        edges=TIE_UP,
        group="sparse task vectors",
        mergekit={"breadcrumbs_ties": Mergekit(MIDDLE, {**SPARSE, "normalize": ELECT})},
    ),
    "model-stock": Method(
        "merge.methods.stock:model_stock",
        "Move from the base towards the mean of the experts, as far as the angle between them says.",
        "(1 - t) * base + t * mean_i X_i, t = k c / (1 + (k - 1) c), c the mean cosine of the k task vectors",
        "Model Stock, arXiv 2403.19522",
        {"filter_wise": Parameter("one t for each row of a tensor", default=False, kind=bool)},
        takes_base=True,
        edges="t is clamped to [0, 1]; an expert equal to the base has cosine 0",
        group="agreement of experts",
        mergekit={"model_stock": Mergekit(whole={"filter_wise": ("filter_wise", False)})},
    ),
    "sce": Method(
        "merge.methods.variance:sce",
        "Select the entries in which the experts differ most and weight the experts by their energy there.",
        "base + mean of the agreeing s_i * select(X_i - base), s_i the share of energy, select by variance",
        "FuseChat SCE, arXiv 2408.07990",
        {"density": Parameter("part of the entries that is selected", low=0.0, high=1.0, example=0.2)},
        takes_base=True,
        edges=f"the part is of the entries in which experts differ; {AT_CUT}; {TIE_UP}",
        group="agreement of experts",
        mergekit={"sce": Mergekit(whole={"select_topk": ("density", 1.0)})},
    ),
    "ram": Method(
        "merge.methods.reinforced:ram",
        "Average every changed entry over the experts that have changed it.",
        "base + mean of the X_i - base that are larger than threshold, entry by entry",
        "RAM, arXiv 2601.13572",
        {"threshold": THRESHOLD},
        takes_base=True,
        elementwise=True,
        edges="an entry that nobody has changed is the base's",
        group="agreement of experts",
        mergekit={"ram": Mergekit(whole={"epsilon": ("threshold", 1e-5)})},
    ),
    "ram-plus": Method(
        "merge.methods.reinforced:ram_plus",
        "Average as ram and stretch the entries that one expert alone has changed.",
        "as ram, an entry that i alone has changed times 1 + gain * min(shared_i / alone_i, limit)",
        "RAM+, arXiv 2601.13572, per tensor",
        {
            "threshold": THRESHOLD,
            "gain": Parameter("how much entries changed by one expert are stretched", default=0.1),
            "limit": Parameter("largest ratio that counts", default=0.2, low=0.0),
        },
        takes_base=True,
        edges="an expert without changes of its own has gain 1",
        group="agreement of experts",
        mergekit={
            "ramplus_tl": Mergekit(whole={"epsilon": ("threshold", 1e-5), "r": ("gain", 0.1), "alpha": ("limit", 0.2)})
        },
    ),
    "nearswap": Method(
        "merge.methods.fusion:nearswap",
        "Move each entry of the base towards that of one expert by at most t.",
        "(1 - w) * base + w * X, w = min(t / |X - base|, 1)",
        "QuartetAnemoi-70B, 2024; mergekit",
        {"t": Parameter("distance within which an entry is taken", low=0.0, example=0.01)},
        takes_base=True,
        elementwise=True,
        inputs=(1, 1),
        single=shortcuts.by_distance,
        edges="t of 0 is the base",
        group="one expert and its base",
        mergekit={"nearswap": Mergekit(whole={"t": ("t", None)})},
    ),
    "arcee-fusion": Method(
        "merge.methods.fusion:arcee_fusion",
        "Take the entries of one expert that matter exceptionally, and the rest from the base.",
        "X where |X - base| * KL >= median + 1.5 * (Q3 - Q1), else base; KL of the softmaxes of a row",
        "Arcee Fusion, mergekit 2025",
        takes_base=True,
        inputs=(1, 1),
        edges="quantiles are rounded down; where all entries are equally important all are taken",
        group="one expert and its base",
        mergekit={"arcee_fusion": Mergekit()},
    ),
    "fisher": Method(
        "merge.methods.weighted:fisher",
        "Average every entry weighted by the experts' Fisher information.",
        "sum_i F_i * X_i / sum_i F_i; inputs X_1 ... X_n, F_1 ... F_n",
        "Fisher-weighted averaging, arXiv 2111.09832",
        {"floor": FLOOR},
        elementwise=True,
        inputs=(4, None),
        statistics=True,
        edges="entries with no information are averaged",
        group="weights from statistics",
    ),
    "regmean": Method(
        "merge.methods.weighted:regmean",
        "Fit each linear layer to the outputs of all experts, by the inner products of its inputs.",
        "(sum_i X_i G_i) (sum_i G_i)^-1 of linear layers, fisher for the rest; inputs X_1 ... X_n, G_1 ... G_n",
        "RegMean, arXiv 2212.09849",
        {"shrink": Parameter("factor of inner products off the diagonal", 0.9, 0.0, 1.0), "floor": FLOOR},
        inputs=(4, None),
        statistics=True,
        edges="input features that nobody has seen are averaged",
        group="weights from statistics",
    ),
}

__all__ = ["METHODS", "Mergekit", "Method", "Parameter"]
