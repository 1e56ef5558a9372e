"""Audio captioning on Clotho (version 1)."""

from dataclasses import replace

from unival_core.data.task import Published
from unival_core.tasks import audio_caption, video_caption

TASK = replace(
    audio_caption.TASK,
    name="audio-caption-clotho",
    recipes={"base": {**audio_caption.BASE, "lr": 5e-5}},
    published=Published(
        data="Clotho v1",
        original="audio_caption",
        checkpoint="unival_audio_caption_clotho/checkpoint_best.pt",
        files={
            "train": ("audio_data/caption_data/clotho_development.tsv",),
            "test": ("audio_data/caption_data/clotho_evaluation.tsv",),
        },
        generation=video_caption.VALIDATED,
    ),
)
