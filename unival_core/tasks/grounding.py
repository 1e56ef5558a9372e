"""Visual grounding (RefCOCO, RefCOCO+, RefCOCOg): the box of what a text describes, as four bins."""

from unival_core.data.cells import region
from unival_core.data.task import MAX_WORDS, Box, Family, InStage, Published, Row, Task
from unival_core.decoding import GenerationOptions
from unival_core.text import clean_caption


def prompt(row: Row) -> str:
    """Quote the description."""
    return f' which region does the text " {clean_caption(row["text"], MAX_WORDS)} " describe?'


def reference(row: Row) -> Box:
    """Take the box of the row, in pixels, as it is before it is rounded to bins."""
    return region(row["box"])


def files(name: str) -> dict[str, tuple[str, ...]]:
    """Name the files of a data set; the study's test set are both of its two."""
    parts = {split: (f"{name}_data/{name}_{split}.tsv",) for split in ("train", "val", "testA", "testB")}
    return {**parts, "test": (*parts["testA"], *parts["testB"])}


BASE = {"lr": 5e-5, "epochs": 10, "group": "all"}
TASK = Task(
    name="grounding",
    columns=("uniq_id", "media", "text", "box"),
    layout=("uniq_id", "image_id", "text", "box", "media"),
    prompt=prompt,
    target=lambda row, generator: reference(row),
    reference=reference,
    metrics=("Acc@0.5",),
    generation=GenerationOptions(beam=5, min_len=4, max_len_b=4, no_repeat_ngram=3),
    side=512,
    writes="box",
    asks="text",
    submits=("uniq_id", "box"),
    example={"text": "the red seven", "box": "3,4,30,36"},
    recipes={"base": BASE, "pocket": {"lr": 1e-3, "updates": 180, "group": "all"}},
    pretraining={
        "base": dict.fromkeys(("image", "image-video", "large"), InStage()),
        "pocket": dict.fromkeys(("image", "image-video"), InStage()),
    },
    published=Published(
        data="RefCOCO+ (UNC)",
        original="refcoco",
        checkpoint="unival_refcocoplus/checkpoint_best.pt",
        files=files("refcocoplus"),
    ),
    family=Family("image", 2),
)
