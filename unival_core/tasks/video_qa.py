"""Video question answering (MSRVTT-QA, MSVD-QA): as about pictures, with eight frames."""

from dataclasses import replace

from unival_core.tasks import vqa

TASK = replace(vqa.TASK, name="video-qa", medium="video", side=384, frames=8)
