"""Video question answering (MSRVTT-QA, MSVD-QA): as about images, with eight frames."""

from dataclasses import replace

from unival_core.data.task import Family, InStage, Published
from unival_core.tasks import caption, video_caption, vqa

TASK = replace(
    vqa.TASK,
    name="video-qa",
    medium="video",
    side=384,
    frames=8,
    recipes={  # of MSRVTT-QA; MSVD-QA: 40 epochs
        "base": {"epochs": 25, "batch": 128, "loss": caption.ENCOURAGING, "ema": 0.9999},
        "pocket": {"updates": 100},
    },
    pretraining={"base": video_caption.PRETRAINING, "pocket": {"image-video": InStage(1.5)}},
    published=Published(
        checkpoint="unival_video_vqa/checkpoint_best.pt",
        average=True,
        files={
            "train": ("video_data/vqa_data/msrvtt_qa_4k_train.tsv",),
            "val": ("video_data/vqa_data/msrvtt_qa_val.tsv",),
            "test": ("video_data/vqa_data/msrvtt_qa_4k_test.tsv",),
        },
        answers={"": "video_data/vqa_data/msrvtt_trainval_4k_ans2label.pkl"},
    ),
    family=Family("video", 0),
)
