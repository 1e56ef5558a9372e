"""Visual grounding on RefCOCOg (UMD), whose descriptions are long."""

from dataclasses import replace

from unival_core.data.task import Published
from unival_core.tasks import grounding

TASK = replace(
    grounding.TASK,
    name="grounding-refcocog",
    recipes={"base": grounding.BASE},
    pretraining={},
    published=Published(
        data="RefCOCOg (UMD)",
        original="refcoco",
        checkpoint="unival_refcocog/checkpoint_best.pt",
        files={split: (f"refcocog_data/refcocog_{split}.tsv",) for split in ("train", "val", "test")},
    ),
    family=None,
)
