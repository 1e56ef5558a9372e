"""Audio captioning: one sentence about what is heard (AudioCaps, Clotho). Published models are asked about a video."""

from dataclasses import replace

from unival_core.data.task import Published
from unival_core.tasks import caption, video_caption

BASE = {"epochs": 25, "batch": 128, "loss": caption.ENCOURAGING}
TASK = replace(
    caption.TASK,
    name="audio-caption",
    medium="audio",
    prompt=video_caption.prompt,
    example={"caption": "someone dials one two && the tones of one and two"},
    recipes={"base": BASE, "pocket": {"lr": 1e-3, "updates": 250}},
    pretraining={},
    published=Published(
        data="AudioCaps",
        original="audio_caption",
        checkpoint="unival_audio_caption/checkpoint_best.pt",
        files={
            "train": ("audio_data/caption_data/audiocaps_train.tsv",),
            "test": ("audio_data/caption_data/audiocaps_test.tsv",),
        },
        generation=video_caption.VALIDATED,
    ),
    family=None,
)
