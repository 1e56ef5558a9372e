"""Scores of predictions against references: `METRICS`, and the functions they are made of."""

import math
from functools import partial

from unival_core.metrics.accuracy import (
    PUBLISHED_AREAS,
    SIZES,
    box_accuracy,
    box_iou,
    code_accuracy,
    exact_match,
    vqa_accuracy,
)
from unival_core.metrics.captions import (
    bleu,
    cider_d,
    document_frequencies,
    load_frequencies,
    rouge_l,
    save_frequencies,
)
from unival_core.metrics.intervals import Interval, bootstrap_interval, is_binary, score_interval, wilson_interval
from unival_core.metrics.meteor import meteor
from unival_core.metrics.scores import Metric, Scores, not_computed, told_mean

_OTHER = "× 100"  # the unit of scores that are no share of anything
METRICS: dict[str, Metric] = {
    "VQA accuracy": Metric(vqa_accuracy, "mean confidence of the given answers"),
    "accuracy": Metric(exact_match, "share of right answers"),
    "Acc@0.5": Metric(box_accuracy, "share of boxes with an overlap of half or more"),
    **{f"Acc@0.5 {size}": Metric(box_accuracy, f"the same of {size} boxes", size=size) for size in SIZES},
    **{  # as published: these three add up to Acc@0.5
        f"Acc@0.5 {size} of all": Metric(partial(box_accuracy, of_all=True), f"{size} ones, of all boxes", size=size)
        for size in SIZES
    },
    **{
        f"Acc@{share}": Metric(partial(box_accuracy, threshold=share), f"share of boxes with an overlap of {share}")
        for share in (0.4, 0.6, 0.7, 0.8, 0.9)
    },
    "BLEU@1": Metric(partial(bleu, order=1), "words found in the references", _OTHER, is_mean=False),
    "BLEU@2": Metric(partial(bleu, order=2), "pairs of words and shorter", _OTHER, is_mean=False),
    "BLEU@3": Metric(partial(bleu, order=3), "runs of three words and shorter", _OTHER, is_mean=False),
    "BLEU@4": Metric(partial(bleu, order=4), "runs of four words and shorter", _OTHER, is_mean=False),
    "ROUGE-L": Metric(rouge_l, "longest common subsequence", _OTHER),
    "CIDEr-D": Metric(cider_d, "likeness of rare n-grams", _OTHER, (0.0, 10.0)),
    "METEOR": Metric(meteor, "words matched by form, stem or meaning", _OTHER, is_mean=False),
    "code accuracy": Metric(code_accuracy, "share of right image codes"),
    "negative log-likelihood": Metric(
        told_mean,
        "improbability of the references, per token",
        "nats",
        (0.0, math.inf),
        higher_is_better=False,
        factor=1.0,
        of="loss",
    ),
    "confidence": Metric(told_mean, "probability of the given answer among those allowed", of="confidence"),
}

__all__ = [
    "METRICS", "PUBLISHED_AREAS", "SIZES", "Interval", "Metric", "Scores", "bootstrap_interval", "box_iou",
    "document_frequencies", "is_binary", "load_frequencies", "not_computed", "save_frequencies", "score_interval",
    "wilson_interval",
]  # fmt: skip
