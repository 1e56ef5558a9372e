"""Methods that look at the whole model first."""

from __future__ import annotations

from dataclasses import replace

from merge.methods.entries.words import BLOCK, FACTORS, UNIT, WHERE
from merge.methods.method import Method, Parameter, Survey

LINES_PARAMETERS = {
    "alpha": Parameter("factor in the first block and outside of blocks", default="auto", words=("auto",)),
    "beta": Parameter("what the factor grows by; auto: 1 - alpha", default="auto", words=("auto",)),
    "blocks": Parameter("number of blocks", default="auto", low=1, kind=int, words=("auto",)),
    "block": BLOCK,
    "change": Parameter("what is added", default="sum", kind=str, words=("sum", "ties")),
    "density": Parameter("of ties: part of each task vector that is kept", 0.2, 0.0, 1.0, each=True),
    "threshold": replace(WHERE, default="whole", help=f"of ties: {WHERE.help}"),
}

WHOLE: dict[str, Method] = {
    "lines": Method(
        "merge.methods.depth:lines",
        "Add a merged change whose factor grows with the depth of the block, read from the names.",
        "base + (alpha + beta * l / (L - 1)) * change, the change sum_i (X_i - base) or TIES' sum; l of L blocks",
        "LiNeS, arXiv 2410.17146",
        LINES_PARAMETERS,
        takes_base=True,
        inputs=(1, None),
        survey=Survey("merge.methods.depth:factors", of=tuple(LINES_PARAMETERS)),
        edges="alpha auto: |sum_i (X_i - base)|_1 / |change|_1 / n over the whole model; one block, or none: alpha; of "
        "one expert alpha and 1 - alpha edit it; names behind the blocks have alpha too",
        group="the whole model in view",
    ),
    "pcb": Method(
        "merge.methods.pcb:pcb",
        "Let entries compete within their task vector and with the other experts', and average the best.",
        "base + scale * sum_i weights_i s_i (X_i - base) / sum_i s_i, s_i from exp(n m_i^2) tanh((X_i - base) sum_j)",
        "PCB-Merging, arXiv 2410.02396",
        {
            "density": Parameter("part of each task vector that counts", low=0.0, high=1.0, each=True, example=0.2),
            "version": Parameter(
                "which of the authors' programs", default="general", kind=str, words=("general", "nlp", "vision")
            ),
            "weights": FACTORS,
            "scale": UNIT,
        },
        takes_base=True,
        inputs=(1, None),
        survey=Survey("merge.methods.pcb:ranges", of=("density", "version")),
        edges="an expert without change counts for nothing (the authors' program gives NaN everywhere); changes of "
        "another size select other entries",
        group="the whole model in view",
        grid={"density": (0.1, 0.3), "scale": (0.7, 1.0, 1.5)},
    ),
}
