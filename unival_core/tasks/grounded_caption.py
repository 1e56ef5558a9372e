"""Grounded captioning: one sentence about a region of an image. Published in pretraining only."""

from random import Random

from unival_core.data.cells import plain, region, several
from unival_core.data.task import Box, InStage, Row, Task
from unival_core.tasks.caption import NOISY, SENTENCE
from unival_core.text import clean_caption

MAX_TARGET_WORDS = 30


def prompt(row: Row) -> tuple[str, Box]:
    """Name the region by four bins."""
    return "  what does the region describe? region:", region(row["box"])


def targets(row: Row) -> list[str]:
    """Take the first 30 words of each of the row's descriptions."""
    return [clean_caption(text, MAX_TARGET_WORDS) for text in several(row["text"])]


def target(row: Row, generator: Random | None) -> str:
    """Take one of them, at random in training."""
    return targets(row)[0] if generator is None else generator.choice(targets(row))


def reference(row: Row) -> list[str]:
    """Take all descriptions as they stand in the file."""
    return several(row["text"])


TASK = Task(
    name="grounded-caption",
    columns=("uniq_id", "media", "text", "box"),
    layout=("uniq_id", "image_id", "text", "box", "media"),
    prompt=prompt,
    target=target,
    targets=targets,
    reference=reference,
    metrics=("CIDEr-D", "BLEU@4", "ROUGE-L"),
    generation=SENTENCE,
    answer=plain,
    asks="box",
    example={"text": "the red seven", "box": "3,4,30,36"},
    recipes={"base": {"lr": 1e-5, "epochs": 10, "batch": 128, "loss": NOISY}},  # none was published: as for captions
    pretraining={"base": dict.fromkeys(("image", "image-video", "large"), InStage())},
)
