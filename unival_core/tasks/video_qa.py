"""Video question answering (MSRVTT-QA, MSVD-QA): as about images, with eight frames."""

from dataclasses import replace

from unival_core.data.task import Family, InStage, Published
from unival_core.tasks import caption, video_caption, vqa

BASE = {"epochs": 35, "batch": 128, "warmup": 0.04, "loss": caption.ENCOURAGING, "ema": 0.9999}
TASK = replace(
    vqa.TASK,
    name="video-qa",
    medium="video",
    side=384,
    frames=8,
    recipes={"base": BASE, "pocket": {"updates": 100}},
    pretraining={"base": video_caption.PRETRAINING, "pocket": {"image-video": InStage(1.5)}},
    published=Published(
        data="MSRVTT-QA",
        original="video_vqa_gen",
        checkpoint="unival_video_vqa/checkpoint_best.pt",
        average=True,
        files={
            "train": ("video_data/vqa_data/msrvtt_qa_4k_train.tsv",),
            "test": ("video_data/vqa_data/msrvtt_qa_4k_test.tsv",),
        },
        answers={"": "video_data/vqa_data/msrvtt_trainval_4k_ans2label.pkl"},
    ),
    family=Family("video", 0),
)
