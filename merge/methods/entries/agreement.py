"""What experts agree on, one expert and its base, weights from statistics."""

from __future__ import annotations

from merge.methods import shortcuts
from merge.methods.entries.words import (
    AT_CUT,
    FLOOR,
    THRESHOLD,
    TIE_UP,
)
from merge.methods.method import Mergekit, Method, Parameter

AGREEMENT: dict[str, Method] = {
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
