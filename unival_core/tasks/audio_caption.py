"""Audio captioning: one sentence about what is heard (AudioCaps, Clotho). Published models are asked about a video."""

from dataclasses import replace

from unival_core.data.task import Published
from unival_core.tasks import caption, video_caption

TASK = replace(
    caption.TASK,
    name="audio-caption",
    medium="audio",
    prompt=video_caption.prompt,
    example={"caption": "someone dials one two && the tones of one and two"},
    recipes={  # of AudioCaps; Clotho v1: lr 5e-5
        "base": {"epochs": 10, "batch": 128, "loss": caption.ENCOURAGING},
        "pocket": {"lr": 1e-3, "updates": 250},
    },
    pretraining={},
    published=Published(),
    family=None,
)
