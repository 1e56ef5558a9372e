"""Task vectors as matrices, by their singular vectors or by descent; one vector for all experts, and masks."""

from __future__ import annotations

from dataclasses import replace

from merge.methods import shortcuts
from merge.methods.entries.words import SCALE, UNIT, WHERE
from merge.methods.method import Method, Parameter, Survey

TOLERANCE = Parameter(
    "singular values below this part of the largest are zero",
    default=1e-6,
    low=0.0,
    high=1.0,
)
EXCLUDE = Parameter("matrices that are averaged like biases", default="text_projection", kind=tuple)
EXPERT = Parameter("the expert whose own model is made, by its mask", default="", kind=str, input=True)
NULL = "directions that nobody has changed are left out"
REST = "what is not 2-D, or excluded, has the mean of the task vectors for change (convolutions too)"

MATRICES: dict[str, Method] = {
    "tsv": Method(
        "merge.methods.spectral:tsv",
        "Add up each expert's largest singular triples of a matrix, made orthogonal to the others'.",
        "base + scale * U diag(S) V^T, U and V the polar factors of all experts' first floor(r / T) singular vectors",
        "TSV-Merge, arXiv 2412.00081",
        {"scale": UNIT, "exclude": EXCLUDE, "tolerance": TOLERANCE},
        takes_base=True,
        inputs=(1, None),
        single=shortcuts.by_factor,
        edges=f"{NULL}; fewer rows or columns than experts (r < T): averaged; {REST}",
        group="matrices",
        grid={"scale": (0.5, 1.0, 1.5)},
    ),
    "iso-c": Method(
        "merge.methods.spectral:iso_c",
        "Give the sum of the task vectors of a matrix one singular value: the mean of its own.",
        "base + scale * mean(S) * U V^T, U S V^T = sum_i (X_i - base)",
        "Iso-C, arXiv 2502.04959",
        {"scale": UNIT, "exclude": EXCLUDE, "tolerance": TOLERANCE},
        takes_base=True,
        inputs=(1, None),
        single=shortcuts.by_no_scale,
        edges=f"{NULL}, and not counted in the mean; {REST}",
        group="matrices",
        grid={"scale": (0.5, 1.0, 1.5, 2.0)},
    ),
    "iso-cts": Method(
        "merge.methods.spectral:iso_cts",
        "Keep the main directions of the sum of a matrix and each expert's own, at one singular value.",
        "as iso-c, of the sum's first c directions beside the first k of each X_i - base outside them; c + k T = r",
        "Iso-CTS, arXiv 2502.04959",
        {
            "scale": UNIT,
            "common_space_fraction": Parameter("part of the directions that is the sum's", 0.8, 0.0, 1.0),
            "exclude": EXCLUDE,
            "tolerance": TOLERANCE,
        },
        takes_base=True,
        inputs=(1, None),
        single=shortcuts.by_no_scale,
        edges=f"{NULL}; k is rounded to the nearest, and down where there are not so many directions; {REST}",
        group="matrices",
        grid={"scale": (0.5, 1.0, 1.5, 2.0)},
    ),
    "wudi": Method(
        "merge.methods.spectral:wudi",
        "Move the sum of the task vectors of a matrix to where it disturbs each expert least, by Adam.",
        "base + scale * x, x from sum_i t_i by steps of Adam on sum_i |(x - t_i) t_i^T|^2 / |t_i|^2, t_i = X_i - base",
        "WUDI-Merging, arXiv 2503.08099",
        {
            "steps": Parameter("steps of Adam", default=300, low=0, kind=int),
            "learning_rate": Parameter("most that an entry moves in a step", default=1e-5, low=0.0),
            "scale": UNIT,
            "exclude": Parameter("matrices that are averaged like biases", default="", kind=tuple),
        },
        takes_base=True,
        inputs=(1, None),
        single=shortcuts.by_factor,
        edges=f"an expert that left a matrix as it was has no part in its sum; {REST}",
        group="matrices",
        grid={"scale": (0.5, 1.0)},
    ),
    "emr": Method(
        "merge.methods.masks:emr",
        "Elect a sign by the mean of the task vectors, and take the largest magnitude that has it.",
        "base + scale * u, u = s * max_i max(s * t_i, 0), s the sign of sum_i t_i; an expert: c * u where s * t_i > 0",
        "EMR-Merging, arXiv 2405.17461",
        {
            "scale": UNIT,
            "expert": EXPERT,
            "rescaler": Parameter(
                "of an expert's model, c: the ratio of norms over all entries, or as in the authors' program of means",
                default="entries",
                kind=str,
                words=("entries", "tensors"),
            ),
        },
        takes_base=True,
        elementwise=True,
        inputs=(1, None),
        single=shortcuts.by_factor,
        survey=Survey("merge.methods.masks:rescalers", of=("expert", "rescaler")),
        edges="a sum of exactly 0 elects -; an expert without changes has c of 1; masks are written as models only",
        group="masks",
        grid={"scale": (0.5, 1.0)},
    ),
    "consensus": Method(
        "merge.methods.masks:consensus",
        "Add the summed task vectors where enough experts hold them for their own.",
        "base + scale * t where at least k masks are set, t = sum_i t_i, mask_i: |t_i| > tall_lambda_i * |t - t_i|",
        "Consensus TA with TALL masks, arXiv 2405.07813",
        {
            "scale": SCALE,
            "tall_lambda": Parameter("how much stricter a mask is with an expert", 0.4, 0.0, each=True),
            "k": Parameter("masks in which an entry has to be", default=2, low=0, kind=int),
            "expert": EXPERT,
            "change": Parameter("what t is", default="sum", kind=str, words=("sum", "ties")),
            "density": Parameter("of ties: part of each task vector that is kept", 0.2, 0.0, 1.0, each=True),
            "threshold": replace(
                WHERE, default="whole", words=("whole", "published"), help="of ties: the largest of the whole model"
            ),
        },
        takes_base=True,
        elementwise=True,
        inputs=(1, None),
        single=shortcuts.by_no_scale,
        survey=Survey("merge.methods.whole:cuts", of=("change", "density", "threshold")),
        edges="k of 0 is task arithmetic; k above the number of experts is an error; 0 is not above 0",
        group="masks",
        grid={"scale": (0.3, 0.5, 1.0), "k": (1, 2)},
    ),
}
