"""Hyper-parameters as data: the published recipes by task (arXiv 2307.16184, G.1), and those of the pocket scale.

>>> RECIPES["base"]["vqa"].options.lr
0.0001
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from unival_core.config import PUBLISHED_REGULARIZATION
from unival_core.errors import UnivalError
from unival_core.training.loss import LossOptions
from unival_core.training.options import RewardOptions, TrainOptions

FROZEN = "all but embeddings"


@dataclass(frozen=True)
class Recipe:
    """Finetuning on one task. `side` (pixels) and `frames` replace the sizes of the task's media; None keeps them."""

    options: TrainOptions
    side: int | None = None
    frames: int | None = None


@dataclass(frozen=True)
class Stage:
    """One part of pretraining. `tasks` are their shares of every batch, `splits` where rows of a task come from if not
    from `pretrain`; `side` and `frames` are sizes of media as in `Recipe`."""

    name: str
    options: TrainOptions
    tasks: Mapping[str, float]
    splits: Mapping[str, str] = field(default_factory=dict[str, str])
    side: int | None = None
    frames: int | None = None

    def split(self, task: str) -> str:
        """The split that a task's rows come from."""
        return self.splits.get(task, "pretrain")


# -- base: the published 0.25B model

_SMOOTH = LossOptions(smoothing=0.1)
_ENCOURAGING = LossOptions(smoothing=0.1, encourage_until=0.75)
_NOISY_CAPTIONS = replace(_ENCOURAGING, drop_worst=0.05, drop_after=6000)
_PUBLISHED = TrainOptions(
    lr=1e-4, epochs=5, batch=256, loss=_SMOOTH, regularization=PUBLISHED_REGULARIZATION, group=FROZEN, precision="fp16"
)
_GROUNDING = replace(_PUBLISHED, lr=5e-5, epochs=8, group="all")
_VIDEO_QA = replace(_PUBLISHED, epochs=25, batch=128, loss=_ENCOURAGING, ema=0.9999)
_BASE = {
    "vqa": Recipe(replace(_PUBLISHED, ema=0.9999), side=480),
    "caption": Recipe(replace(_PUBLISHED, lr=1e-5, epochs=4, batch=128, loss=_NOISY_CAPTIONS), side=480),
    "grounding": Recipe(_GROUNDING, side=512),
    "entailment": Recipe(replace(_PUBLISHED, lr=5e-5, epochs=4, loss=LossOptions(), group="all"), side=480),
    "video-qa": Recipe(_VIDEO_QA, side=384, frames=8),  # MSRVTT-QA; MSVD-QA: 40 epochs
    "video-caption": Recipe(replace(_PUBLISHED, lr=1e-5, epochs=15, loss=_ENCOURAGING), side=384, frames=16),
    # AudioCaps; Clotho v1: lr 5e-5.
    "audio-caption": Recipe(replace(_PUBLISHED, epochs=10, batch=128, loss=_ENCOURAGING)),
}
_PRETRAINING = TrainOptions(
    lr=2e-4, updates=150_000, batch=3200, warmup=0.01, regularization=PUBLISHED_REGULARIZATION, precision="fp16"
)
_IMAGE_TEXT = {"caption": 1.0, "vqa": 1.0, "grounding": 1.0, "grounded-caption": 1.0, "image-text-matching": 1.0}
_FILM_TEXT = {"video-caption": 1.0, "video-qa": 1.0, "video-text-matching": 1.0}
_BOTH = _IMAGE_TEXT | dict.fromkeys(_FILM_TEXT, 5 / 3)  # half of each batch
_BASE_STAGES = (
    Stage("image", _PRETRAINING, _IMAGE_TEXT, side=384),
    Stage("image-video", replace(_PRETRAINING, updates=90_000, batch=4000), _BOTH, side=384, frames=8),
    Stage("large", replace(_PRETRAINING, lr=5e-5, updates=0, epochs=1, batch=4000), _BOTH, side=480, frames=16),
)

# -- pocket: from nothing on a laptop

_SMALL = TrainOptions(
    lr=6e-4, updates=200, batch=64, warmup=0.05, loss=LossOptions(smoothing=0.05), group=FROZEN, save_every=100
)
_POCKET = {
    "vqa": Recipe(replace(_SMALL, lr=1e-3, updates=150)),
    "caption": Recipe(replace(_SMALL, lr=3e-4, updates=80)),
    "grounding": Recipe(replace(_SMALL, lr=1e-3, updates=180, group="all")),
    "entailment": Recipe(replace(_SMALL, lr=1e-3, updates=120, group="all")),
    "video-qa": Recipe(replace(_SMALL, updates=100)),
    "video-caption": Recipe(replace(_SMALL, lr=6e-4, updates=80)),
    "audio-caption": Recipe(replace(_SMALL, lr=1e-3, updates=250)),
}
# The stand-in for ImageNet weights: cells of pictures by digit and colour.
BACKBONE = TrainOptions(lr=3e-3, updates=1000, batch=64, warmup=0.05, group="all")
_SMALL_PRETRAINING = replace(_SMALL, lr=1e-3, updates=1500, loss=LossOptions(), group="all", save_every=250)
_FOUR = {"caption": 1.0, "vqa": 1.0, "grounding": 1.0, "entailment": 1.0}
_POCKET_STAGES = (
    Stage("image", _SMALL_PRETRAINING, _FOUR),
    Stage(
        "image-video",
        replace(_SMALL_PRETRAINING, updates=500),
        # Without entailment, as the published pretraining: what its finetuning adds can then be seen.
        {"caption": 1.0, "vqa": 1.0, "grounding": 1.0, "video-caption": 1.5, "video-qa": 1.5},
        splits={"caption": "pretrain-late"},
    ),
)

RECIPES: dict[str, dict[str, Recipe]] = {"base": _BASE, "pocket": _POCKET}
STAGES: dict[str, tuple[Stage, ...]] = {"base": _BASE_STAGES, "pocket": _POCKET_STAGES}

# Rewarded soups: three experts, each rewarded for boxes of one size (bounds in square pixels).
_COCO, _TERCILES = (32.0**2, 96.0**2), (140.0, 176.0)  # of grounding/train in the world of seed 0 (its world.json)


def rewards_by_size(bounds: tuple[float, float]) -> dict[str, RewardOptions]:
    """Rewards for boxes that are small, medium or large by their area."""
    low, high = bounds
    areas = {"small": (0.0, low), "medium": (low, high), "large": (high, math.inf)}
    return {name: RewardOptions(areas=area) for name, area in areas.items()}


REWARDS: dict[str, dict[str, RewardOptions]] = {
    "base": rewards_by_size(_COCO),
    "pocket": rewards_by_size(_TERCILES),
}

# Pocket: it goes on from the grounding expert, gently, and with the statistics that the draws were made with.
REWARD = replace(_SMALL, lr=1e-4, updates=100, group="all", batchnorm="freeze")
# Pocket: one finetuning on several tasks; it is as long as theirs together.
JOINT = replace(_SMALL, group="all")


def recipe_for(task: str, scale: str) -> Recipe:
    """The recipe of a task; UnivalError if there is none."""
    known = RECIPES.get(scale, {})
    if task not in known:
        raise UnivalError(
            f"no {scale} recipe for {task}: choose a scale of {', '.join(RECIPES)}, a task of {', '.join(_BASE)}"
        )
    return known[task]
