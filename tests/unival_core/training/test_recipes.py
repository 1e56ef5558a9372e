"""Recipes load, and say what the paper's table says."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from unival_core.config import CONFIGS, PUBLISHED_REGULARIZATION
from unival_core.errors import UnivalError
from unival_core.tasks import TASKS
from unival_core.training.recipes import BACKBONE, DEFAULTS, REWARDS, STAGES, options_for
from unival_core.training.rewards import RewardLoss

# The published scripts: epochs, warm-up, batch, lr, side, frozen embeddings, average, encouraging loss.
PUBLISHED = {
    "vqa": (20, 0.04, 256, 1e-4, 480, True, 0.9999, False),
    "caption": (10, 0.06, 128, 1e-5, 480, True, None, True),
    "grounding": (10, 0.06, 256, 5e-5, 512, False, None, False),
    "grounding-refcoco": (10, 0.06, 256, 5e-5, 512, False, None, False),
    "grounding-refcocog": (10, 0.06, 256, 5e-5, 512, False, None, False),
    "entailment": (10, 0.06, 256, 5e-5, 480, False, None, False),
    "video-qa": (35, 0.04, 128, 1e-4, 384, True, 0.9999, True),
    "video-qa-msvd": (40, 0.04, 128, 1e-4, 384, True, 0.9999, True),
    "video-caption": (20, 0.06, 256, 1e-5, 384, True, None, True),
    "video-caption-activitynet": (25, 0.06, 256, 3e-5, 384, True, None, True),
    "audio-caption": (25, 0.06, 128, 1e-4, None, True, None, True),
    "audio-caption-clotho": (25, 0.06, 128, 5e-5, None, True, None, True),
}


@pytest.mark.parametrize("task", PUBLISHED)
def test_published_recipes(task):
    epochs, warmup, batch, lr, side, frozen, ema, encouraging = PUBLISHED[task]
    options, sized = options_for(TASKS[task], "base"), TASKS[task].sized_for(CONFIGS["base"])
    assert (options.epochs, options.warmup, options.batch, options.lr) == (epochs, warmup, batch, lr)
    assert side in (None, sized.side)
    assert (options.group == "all but embeddings") == frozen
    assert options.ema == ema
    assert options.loss.encourage_until == (0.75 if encouraging else None)
    assert options.loss.smoothing == (0 if task == "entailment" else 0.1)
    assert (options.weight_decay, options.betas, options.eps, options.clip) == (0.01, (0.9, 0.999), 1e-8, 1.0)
    assert options.regularization == PUBLISHED_REGULARIZATION


def test_half_of_a_published_batch_is_videos():
    shares = STAGES["base"][1].tasks
    videos = sum(share for task, share in shares.items() if task.startswith("video"))
    assert videos == pytest.approx(sum(shares.values()) / 2)


def test_published_stages():
    images, videos, large = STAGES["base"]
    ends = [round(stage.options.updates * stage.stop) for stage in (images, videos)]
    assert (ends, large.options.epochs * large.stop) == ([150_000, 90_000], 1)
    assert [stage.options.lr for stage in STAGES["base"]] == [2e-4, 1e-4, 5e-5]
    assert {(stage.options.clip, stage.options.warmup, stage.options.loss.smoothing) for stage in STAGES["base"]} == {
        (5.0, 0.01, 0.0)
    }
    assert [stage.options.regularization.patches for stage in STAGES["base"]] == [144, 144, 225]
    assert images.tasks["image-text-matching"] == images.tasks["caption"] + images.tasks["vqa"]
    assert videos.sizes("video-caption") == {"side": 224, "frames": 8}
    assert large.sizes("video-qa") == {"side": 384, "frames": 16}
    assert [stage.sizes("caption")["side"] for stage in STAGES["base"]] == [384, 384, 480]
    assert {stage.stop for stage in STAGES["pocket"]} == {1.0}


def test_pocket_covers_what_base_covers():
    known = {setup: {name for name, task in TASKS.items() if setup in task.recipes} for setup in DEFAULTS}
    assert known["pocket"] <= known["base"]
    assert known["base"] >= PUBLISHED.keys() | {"image-text-matching", "grounded-caption", "image-generation"}
    assert BACKBONE.updates > 0


@pytest.mark.parametrize("scale", STAGES)
def test_stages_name_known_tasks(scale):
    for stage in STAGES[scale]:
        assert stage.tasks.keys() <= TASKS.keys()
        assert stage.splits.keys() <= stage.tasks.keys()
    assert STAGES["pocket"][1].split("caption") == "pretrain-late"
    assert STAGES["pocket"][1].split("vqa") == "pretrain"


def test_rewards_share_all_sizes_of_boxes_without_overlap():
    bounds = [REWARDS["pocket"][size].areas for size in ("small", "medium", "large")]
    assert bounds == [(0, 140), (140, 176), (176, math.inf)]


def test_published_rewards_are_for_the_published_areas():
    counted = {}
    for name, reward in REWARDS["base"].items():
        loss = RewardLoss(None, None, reward)
        boxes = [(1.0, 2.0, 1.0 + area, 3.0) for area in (1, 29_999, 30_000, 30_001, 99_999, 100_000, 100_001)]
        counted[name] = "".join("01"[loss.counts(SimpleNamespace(reference=box, size=(9, 9)))] for box in boxes)
    assert counted == {
        "small": "1100000",
        "medium": "0001100",
        "large": "0000001",
        "small+medium": "1111100",
        "medium+large": "0001111",
        "small+large": "1100001",
    }


def test_a_task_without_a_recipe_is_trained_by_that_of_its_setup():
    for setup, options in DEFAULTS.items():
        assert options_for(replace(TASKS["caption"], recipes={}), setup) == options


def test_wrong_recipes_are_told():
    with pytest.raises(UnivalError, match="no setup 'large': choose one of base, pocket"):
        options_for(TASKS["vqa"], "large")
    wrong = replace(TASKS["vqa"], recipes={"pocket": {"speed": 2}})
    with pytest.raises(UnivalError, match=r"the pocket recipe of vqa: .*'speed'"):
        options_for(wrong, "pocket")
