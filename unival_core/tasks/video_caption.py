"""Video captioning: one sentence about a film (MSRVTT, ActivityNet)."""

from dataclasses import replace

from unival_core.data.task import Row
from unival_core.tasks import caption


def prompt(row: Row) -> str:
    """The same words for every film."""
    return " what does the video describe?"


TASK = replace(
    caption.TASK,
    name="video-caption",
    medium="video",
    side=384,
    frames=16,
    prompt=prompt,
    metrics=("BLEU@4", "CIDEr-D", "ROUGE-L"),
)
