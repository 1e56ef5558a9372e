"""Scores of predictions against references: every metric is a function `(predictions, references) -> Scores`."""

from collections.abc import Callable
from functools import partial

from unival_core.metrics.accuracy import (
    COCO_AREAS,
    SIZES,
    box_accuracy,
    box_iou,
    code_accuracy,
    exact_match,
    vqa_accuracy,
)
from unival_core.metrics.captions import (
    DocumentFrequencies,
    bleu,
    cider_d,
    document_frequencies,
    load_frequencies,
    rouge_l,
    save_frequencies,
)
from unival_core.metrics.intervals import (
    Interval,
    bootstrap_interval,
    is_binary,
    score_interval,
    wilson_interval,
)
from unival_core.metrics.meteor import meteor
from unival_core.metrics.scores import Scores
from unival_core.metrics.tokens import TOKENIZERS

METRICS: dict[str, Callable[..., Scores]] = {
    "VQA accuracy": vqa_accuracy,
    "accuracy": exact_match,
    "Acc@0.5": box_accuracy,
    "Acc@0.5 small": partial(box_accuracy, size="small"),
    "Acc@0.5 medium": partial(box_accuracy, size="medium"),
    "Acc@0.5 large": partial(box_accuracy, size="large"),
    "BLEU@1": partial(bleu, order=1),
    "BLEU@2": partial(bleu, order=2),
    "BLEU@3": partial(bleu, order=3),
    "BLEU@4": partial(bleu, order=4),
    "ROUGE-L": rouge_l,
    "CIDEr-D": cider_d,
    "METEOR": meteor,
    "code accuracy": code_accuracy,
}

__all__ = [
    "COCO_AREAS",
    "METRICS",
    "SIZES",
    "TOKENIZERS",
    "DocumentFrequencies",
    "Interval",
    "Scores",
    "bleu",
    "bootstrap_interval",
    "box_accuracy",
    "box_iou",
    "cider_d",
    "code_accuracy",
    "document_frequencies",
    "exact_match",
    "is_binary",
    "load_frequencies",
    "meteor",
    "rouge_l",
    "save_frequencies",
    "score_interval",
    "vqa_accuracy",
    "wilson_interval",
]
