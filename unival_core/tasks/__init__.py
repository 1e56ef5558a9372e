"""The tasks, one file each. A new one is a file with a `TASK` and a line here (docs/task-of-your-own.md)."""

from unival_core.data.task import Task
from unival_core.errors import UnivalError
from unival_core.tasks import (
    audio_caption,
    audio_caption_clotho,
    caption,
    entailment,
    grounded_caption,
    grounding,
    grounding_refcoco,
    grounding_refcocog,
    image_generation,
    image_text_matching,
    video_caption,
    video_caption_activitynet,
    video_qa,
    video_qa_msvd,
    video_text_matching,
    vqa,
)

__all__ = ["TASKS", "find_task"]

TASKS: dict[str, Task] = {
    "caption": caption.TASK,
    "vqa": vqa.TASK,
    "grounding": grounding.TASK,
    "entailment": entailment.TASK,
    "grounded-caption": grounded_caption.TASK,
    "image-text-matching": image_text_matching.TASK,
    "video-caption": video_caption.TASK,
    "video-qa": video_qa.TASK,
    "video-text-matching": video_text_matching.TASK,
    "audio-caption": audio_caption.TASK,
    "image-generation": image_generation.TASK,
    # The same on other data sets whose experts were published
    "grounding-refcoco": grounding_refcoco.TASK,
    "grounding-refcocog": grounding_refcocog.TASK,
    "video-caption-activitynet": video_caption_activitynet.TASK,
    "video-qa-msvd": video_qa_msvd.TASK,
    "audio-caption-clotho": audio_caption_clotho.TASK,
}


def find_task(name: str) -> Task:
    """Find a task by its name; UnivalError names those there are."""
    if name not in TASKS:
        raise UnivalError(f"no task {name!r}: choose one of {', '.join(TASKS)}")
    return TASKS[name]
