"""Video question answering on MSVD-QA, the question repeated to the decoder.

The published script asks for no such prompt on its command line, but the file's own setting wins there.
"""

from dataclasses import replace

from unival_core.data.task import Published
from unival_core.tasks import video_qa

TASK = replace(
    video_qa.TASK,
    name="video-qa-msvd",
    recipes={"base": {**video_qa.BASE, "epochs": 40}},
    pretraining={},
    published=Published(
        data="MSVD-QA",
        original="video_vqa_gen",
        checkpoint="unival_video_vqa_msvd/checkpoint_best.pt",
        average=True,
        files={
            "train": ("video_data/vqa_data/msvd_qa_1k_train.tsv",),
            "test": ("video_data/vqa_data/msvd_qa_1k_test.tsv",),
        },
        answers={"": "video_data/vqa_data/msvd_trainval_1k_ans2label.pkl"},
    ),
    family=None,
)
