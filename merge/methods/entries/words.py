"""Parameters, and words of mergekit and of docs, that the entries of several methods share."""

from __future__ import annotations

from merge.methods.method import Mergekit, Parameter, Survey

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
LARGEST = Parameter("of the entries that agree take the largest alone", default=False, kind=bool)
WHERE = Parameter(
    "of what the entries kept are the largest: each tensor, the whole model, or that as in the authors' program",
    default="tensor",
    kind=str,
    words=("tensor", "whole", "published"),
)
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
CUTS = Survey("merge.methods.whole:cuts", of=("threshold", "density", "weights"))
BLOCK = Parameter(
    "which of the numbers in a name is its block: the first, or as in the authors' program the lowest",
    default="first",
    kind=str,
    words=("first", "lowest"),
)
PUBLISHED = (
    "over the whole model all entries equal to the cut are kept; as published one more is kept, and a sum of 0 takes "
    "the sign that most entries of the model elect"
)
AT_CUT = "of equal magnitudes at the cut the lowest index is kept"
TIE_UP = "a sum of exactly 0 elects +"
ONE_LINE = "vectors on one line (within 1e-6) or zero: linear; nearly opposite ones grow, 16 bits may not hold them"

# Values worth trying: of sums of task vectors, and of means of those that agree.
SUMMED = {"density": (0.2, 0.5), "scale": (0.1, 0.2, 0.4)}
AGREED = {"density": (0.2, 0.5), "scale": (0.7, 1.0, 1.5)}
DRAWN = {"density": (0.2, 0.5), "scale": (0.3, 0.5, 1.0)}  # means of entries that were stretched
