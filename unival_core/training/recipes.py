"""Hyper-parameters as data: those of a setup are here, those of a task in its entry of TASKS (arXiv 2307.16184, G.1).

>>> options_for(TASKS["vqa"], "base").ema
0.9999
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from unival_core.config import PUBLISHED_REGULARIZATION
from unival_core.data.task import Task
from unival_core.errors import UnivalError
from unival_core.metrics import PUBLISHED_AREAS
from unival_core.tasks import TASKS
from unival_core.training.loss import LossOptions
from unival_core.training.options import RewardOptions, TrainOptions

FROZEN = "all but embeddings"

# What a finetuning is like where the task's own recipe says nothing: at base setup as published for most tasks, at
# pocket setup 200 updates, which a laptop makes in minutes. A task without a recipe gets just this.
DEFAULTS: dict[str, TrainOptions] = {
    "base": TrainOptions(
        lr=1e-4,
        epochs=5,
        batch=256,
        loss=LossOptions(smoothing=0.1),
        regularization=PUBLISHED_REGULARIZATION,
        group=FROZEN,
        precision="fp16",
    ),
    "pocket": TrainOptions(
        lr=6e-4, updates=200, batch=64, warmup=0.05, loss=LossOptions(smoothing=0.05), group=FROZEN, save_every=100
    ),
}


def options_for(task: Task, setup: str) -> TrainOptions:
    """Make the options of finetuning on a task: the setup's, and over them the task's recipe, if it has one.

    Raises UnivalError for an unknown setup, and for a recipe that names what no option is called.
    """
    if setup not in DEFAULTS:
        raise UnivalError(f"no setup {setup!r}: choose one of {', '.join(DEFAULTS)}")
    options, given = DEFAULTS[setup], dict(task.recipes.get(setup, {}))
    try:
        return replace(options, **given | {"loss": replace(options.loss, **given.get("loss", {}))})
    except TypeError as error:
        raise UnivalError(f"the {setup} recipe of {task.name}: {error}") from None


@dataclass(frozen=True)
class Stage:
    """One part of pretraining. `tasks` are their shares of every batch, `splits` where rows of a task come from if not
    from `pretrain`; `side` of images, `video_side` (pixels) and `frames` replace the sizes of the tasks' media, None
    keeps them. The stage ends at the share `stop` of its schedule."""

    name: str
    options: TrainOptions
    tasks: Mapping[str, float]
    splits: Mapping[str, str] = field(default_factory=dict[str, str])
    side: int | None = None
    video_side: int | None = None
    frames: int | None = None
    stop: float = 1.0

    def split(self, task: str) -> str:
        """Name the split that a task's rows come from."""
        return self.splits.get(task, "pretrain")

    def sizes(self, task: str) -> dict[str, int | None]:
        """Return side and frames of a task's media."""
        is_video = TASKS[task].medium == "video"
        return {"side": self.video_side if is_video else self.side, "frames": self.frames}


def _stage(setup: str, name: str, options: TrainOptions, **how: Any) -> Stage:
    """Gather the stage's tasks, in the order of TASKS."""
    parts = {task.name: part for task in TASKS.values() if (part := task.pretraining.get(setup, {}).get(name))}
    splits = {task: part.split for task, part in parts.items() if part.split != "pretrain"}
    return Stage(name, options, {task: part.share for task, part in parts.items()}, splits, **how)


def _long(done: int, **options: Any) -> dict[str, Any]:
    """Return options and end of a published stage, which is that many epochs of a schedule of 50."""
    patches = options.pop("patches")  # as many as an image has: they bind nothing
    regularization = replace(PUBLISHED_REGULARIZATION, patches=patches)
    plain = TrainOptions(warmup=0.01, clip=5.0, regularization=regularization, precision="fp16", **options)
    return {"options": plain, "stop": done / 50}


_SHORT = replace(DEFAULTS["pocket"], lr=1e-3, updates=1500, loss=LossOptions(), group="all", save_every=250)
STAGES: dict[str, tuple[Stage, ...]] = {
    "base": (  # 150,000 updates, then 90,000, then an epoch, each of a schedule that would have gone on
        _stage("base", "image", **_long(15, lr=2e-4, updates=500_000, batch=3200, patches=144), side=384),
        _stage(
            "base",
            "image-video",
            **_long(8, lr=1e-4, updates=562_500, batch=4000, patches=144),
            side=384,
            video_side=224,
            frames=8,
        ),
        _stage(
            "base",
            "large",
            **_long(1, lr=5e-5, epochs=50, batch=4000, patches=225),
            side=480,
            video_side=384,
            frames=16,
        ),
    ),
    "pocket": (
        _stage("pocket", "image", _SHORT),
        _stage("pocket", "image-video", replace(_SHORT, updates=500)),
    ),
}

# -- pocket: what only this setup does

# The stand-in for ImageNet weights: cells of images by digit and colour.
BACKBONE = TrainOptions(lr=3e-3, updates=1000, batch=64, warmup=0.05, group="all")
# It goes on from the grounding expert, gently, and with the statistics that the draws were made with.
REWARD = replace(DEFAULTS["pocket"], lr=1e-4, updates=200, group="all", batchnorm="freeze")
# Drawing, taught behind the pretraining in a stage of its own: image codes are new to the model, captions are not to be
# forgotten. Both have half of every batch.
DRAWING = replace(_SHORT, updates=600, batch=32)
# One finetuning on several tasks; it is as long as theirs together.
JOINT = replace(DEFAULTS["pocket"], group="all")


def rewards_by_size(low: float, above_low: float, high: float, above_high: float) -> dict[str, RewardOptions]:
    """Make rewards of boxes of one size or of two: small ones have an area below `low` square pixels, medium ones from
    `above_low` to below `high`, large ones from `above_high`."""
    areas: dict[str, tuple[float, ...]] = {
        "small": (0.0, low),
        "medium": (above_low, high),
        "large": (above_high, math.inf),
        "small+medium": (0.0, high),
        "medium+large": (above_low, math.inf),
        "small+large": (0.0, low, above_high, math.inf),
    }
    return {name: RewardOptions(areas=area) for name, area in areas.items()}


# Rewarded soups: experts rewarded for boxes of some sizes. At base setup the published ones, at pocket setup the
# terciles of grounding/train in the world of seed 0 (its world.json).
REWARDS: dict[str, dict[str, RewardOptions]] = {
    "base": rewards_by_size(*PUBLISHED_AREAS),
    "pocket": rewards_by_size(140.0, 140.0, 176.0, 176.0),
}
