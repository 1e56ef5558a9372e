"""How a training run goes, apart from what is trained on what."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from unival_core.config import Regularization
from unival_core.errors import UnivalError
from unival_core.training.loss import LossOptions

PRECISIONS = ("fp32", "bf16", "fp16")
BATCHNORMS = ("train", "freeze")
GROUPS = ("all", "all but embeddings", "projections")  # of parameters


@dataclass(frozen=True)
class RewardOptions:
    """Self-critical training on boxes (arXiv 1612.00563; 2306.04488 for its use in rewarded soups).

    `samples` boxes are drawn for every example; one is rewarded with 1 where it overlaps the right box by at least
    `overlap`. Only examples whose right box has an area in `areas` (square pixels of the image as it is in the file)
    count: one range or more, their bounds one after the other, the first of each included, the last not.
    """

    samples: int = 5
    overlap: float = 0.5
    areas: tuple[float, ...] = (0.0, math.inf)

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise UnivalError(f"{self.samples} sample per example: each is compared with the others, draw at least 2")

    def counts(self, box: Sequence[float]) -> bool:
        """Tell whether a right box (x0, y0, x1, y1), in pixels, has an area that is rewarded."""
        x0, y0, x1, y1 = box
        return bisect_right(self.areas, (x1 - x0) * (y1 - y0)) % 2 == 1  # behind the first bound of a range


@dataclass(frozen=True)
class TrainOptions:
    """One run of the optimiser. Its length is `updates`, or `epochs` over the largest data set.

    `batch` counts the samples of an update in all processes and in all `accumulate` parts together. `warmup` is the
    share of updates in which the rate rises linearly to `lr`; then it falls linearly to 0. `group` are the parameters
    to train (`optim.trainable`); with `batchnorm="freeze"` batch norms keep their statistics and use them.
    `ema` is the decay of an average of the weights (None: no average), which is then what is validated and kept.
    `precision` bf16 or fp16 is that of autocast; weights stay in float32. `recompute` saves memory: layers are computed
    again in the backward pass. Validation and saving happen every so many updates, and at the end. With `reward` the
    loss is the self-critical one.
    """

    lr: float
    updates: int = 0
    epochs: float = 0.0
    batch: int = 64
    accumulate: int = 1
    warmup: float = 0.06
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip: float = 1.0
    loss: LossOptions = field(default_factory=LossOptions)
    regularization: Regularization = field(default_factory=Regularization)
    group: str = "all"
    batchnorm: str = "train"
    ema: float | None = None
    precision: str = "fp32"
    recompute: bool = False
    reward: RewardOptions | None = None
    validate_every: int = 0
    save_every: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("precision", self.precision, PRECISIONS),
            ("batchnorm", self.batchnorm, BATCHNORMS),
            ("group", self.group, GROUPS),
        ):
            if value not in known:
                raise UnivalError(f"{name} {value!r}: choose one of {', '.join(known)}")
        if (self.updates > 0) == (self.epochs > 0):
            raise UnivalError(f"give updates or epochs, one of them, not {self.updates} and {self.epochs}")
        if self.batch < 1 or self.accumulate < 1 or self.batch % self.accumulate:
            raise UnivalError(f"a batch of {self.batch} does not divide into {self.accumulate} parts")
        if not 0 <= self.warmup < 1 or (self.ema is not None and not 0 <= self.ema < 1):
            raise UnivalError(f"warmup {self.warmup} is a share of the updates, ema {self.ema} a decay below 1")

    def length(self, rows: int) -> int:
        """Count the updates, where the largest data set has so many rows."""
        return self.updates or math.ceil(self.epochs * rows / self.batch)
