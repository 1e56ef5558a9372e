"""Visual grounding on RefCOCO (UNC)."""

from dataclasses import replace

from unival_core.data.task import Published
from unival_core.tasks import grounding

TASK = replace(
    grounding.TASK,
    name="grounding-refcoco",
    recipes={"base": grounding.BASE},
    pretraining={},
    published=Published(
        data="RefCOCO (UNC)",
        original="refcoco",
        checkpoint="unival_refcoco/checkpoint_best.pt",
        files=grounding.files("refcoco"),
    ),
    family=None,
)
