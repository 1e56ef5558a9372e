"""Video-text matching: whether a sentence fits a video. Published in pretraining only."""

from dataclasses import replace

from unival_core.data.task import Row
from unival_core.tasks import image_text_matching
from unival_core.tasks.video_caption import PRETRAINING


def prompt(row: Row) -> str:
    """Ask about a video."""
    return image_text_matching.asked(row, "video")


TASK = replace(
    image_text_matching.TASK,
    name="video-text-matching",
    medium="video",
    side=384,
    frames=8,
    prompt=prompt,
    pretraining={"base": PRETRAINING},
)
