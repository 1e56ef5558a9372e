"""Video captioning on ActivityNet."""

from dataclasses import replace

from unival_core.data.task import Published
from unival_core.tasks import caption, video_caption

TASK = replace(
    video_caption.TASK,
    name="video-caption-activitynet",
    recipes={"base": {"lr": 3e-5, "epochs": 25, "loss": caption.ENCOURAGING}},
    pretraining={},
    published=Published(
        data="ActivityNet captions",
        original="video_caption",
        checkpoint="unival_video_caption_activitynet_stage_1/checkpoint_best.pt",
        files={
            "train": ("video_data/caption_data/activitynet_caption_train.tsv",),
            "test": ("video_data/caption_data/activitynet_caption_val2.tsv",),
        },
        generation=video_caption.VALIDATED,
    ),
    family=None,
)
