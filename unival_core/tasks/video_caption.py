"""Video captioning: one sentence about a video (MSRVTT, ActivityNet)."""

from dataclasses import replace

from unival_core.data.task import Family, InStage, Published, Row
from unival_core.decoding import GenerationOptions
from unival_core.tasks import caption

PRETRAINING = dict.fromkeys(("image-video", "large"), InStage(5 / 3))  # three such tasks fill half of each batch

# There was no evaluation by itself: published scores are those of validation during training.
VALIDATED = GenerationOptions(beam=5, unnormalized=True)


def prompt(row: Row) -> str:
    """Ask the same of every video."""
    return " what does the video describe?"


TASK = replace(
    caption.TASK,
    name="video-caption",
    medium="video",
    side=384,
    frames=16,
    prompt=prompt,
    metrics=("BLEU@4", "CIDEr-D", "ROUGE-L"),
    example={"caption": "a red seven moves left && seven goes to the left"},
    recipes={"base": {"lr": 1e-5, "epochs": 20, "loss": caption.ENCOURAGING}, "pocket": {"updates": 80}},
    pretraining={"base": PRETRAINING, "pocket": {"image-video": InStage(1.5)}},
    published=Published(
        data="MSRVTT captions",
        original="video_caption",
        checkpoint="unival_video_caption_stage_1/checkpoint_best.pt",
        files={
            "train": ("video_data/caption_data/msrvtt_caption_train7k.tsv",),
            "test": ("video_data/caption_data/msrvtt_caption_test3k.tsv",),
        },
        generation=VALIDATED,
    ),
    family=Family("video", 1),
)
