"""Grounded captioning: one sentence about a region of an image. Published in pretraining only."""

from random import Random

from unival_core.data.cells import plain, region, several
from unival_core.data.task import Box, InStage, Row, Task
from unival_core.tasks.caption import SENTENCE
from unival_core.text import clean_caption

MAX_TARGET_WORDS = 30


def prompt(row: Row) -> tuple[str, Box]:
    """Name the region by four bins."""
    return "  what does the region describe? region:", region(row["box"])


def target(row: Row, generator: Random | None) -> str:
    """Take one of the row's descriptions, at random in training."""
    texts = several(row["text"])
    return clean_caption(texts[0] if generator is None else generator.choice(texts), MAX_TARGET_WORDS)


def reference(row: Row) -> list[str]:
    """Take all descriptions as they stand in the file."""
    return several(row["text"])


TASK = Task(
    name="grounded-caption",
    columns=("uniq_id", "media", "text", "box"),
    layout=("uniq_id", "image_id", "text", "box", "media"),
    prompt=prompt,
    target=target,
    reference=reference,
    metrics=("CIDEr-D", "BLEU@4", "ROUGE-L"),
    generation=SENTENCE,
    answer=plain,
    asks="box",
    example={"text": "the red seven", "box": "3,4,30,36"},
    pretraining={"base": dict.fromkeys(("image", "image-video", "large"), InStage())},
)
