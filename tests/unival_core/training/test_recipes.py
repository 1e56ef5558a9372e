"""Recipes load, and say what the paper's table says."""

import math

import pytest

from unival_core.config import CONFIGS, PUBLISHED_REGULARIZATION
from unival_core.errors import UnivalError
from unival_core.tasks import TASKS
from unival_core.training.recipes import BACKBONE, RECIPES, REWARDS, STAGES, recipe_for

# arXiv 2307.16184, section G.1: epochs, batch, lr, side, frozen embeddings, average, encouraging loss.
PUBLISHED = {
    "vqa": (5, 256, 1e-4, 480, True, 0.9999, False),
    "caption": (4, 128, 1e-5, 480, True, None, True),
    "grounding": (8, 256, 5e-5, 512, False, None, False),
    "entailment": (4, 256, 5e-5, 480, False, None, False),
    "video-qa": (25, 128, 1e-4, 384, True, 0.9999, True),
    "video-caption": (15, 256, 1e-5, 384, True, None, True),
    "audio-caption": (10, 128, 1e-4, None, True, None, True),
}


@pytest.mark.parametrize("task", PUBLISHED)
def test_published_recipes(task):
    epochs, batch, lr, side, frozen, ema, encouraging = PUBLISHED[task]
    recipe = recipe_for(task, "base")
    options = recipe.options
    assert (options.epochs, options.batch, options.lr, recipe.side) == (epochs, batch, lr, side)
    assert (options.group == "all but embeddings") == frozen
    assert options.ema == ema
    assert options.loss.encourage_until == (0.75 if encouraging else None)
    assert options.loss.smoothing == (0 if task == "entailment" else 0.1)
    assert (options.weight_decay, options.betas, options.eps, options.clip) == (0.01, (0.9, 0.999), 1e-8, 1.0)
    assert options.regularization == PUBLISHED_REGULARIZATION


def test_published_sizes_are_those_of_the_tasks():
    """The data sets read the same pixels and frames whether or not a recipe is named."""
    for task, recipe in RECIPES["base"].items():
        sized = TASKS[task].sized_for(CONFIGS["base"])
        assert recipe.side in (None, sized.side), task
        assert recipe.frames in (None, sized.frames), task


def test_half_of_a_published_batch_is_films():
    shares = STAGES["base"][1].tasks
    films = sum(share for task, share in shares.items() if task.startswith("video"))
    assert films == pytest.approx(sum(shares.values()) / 2)
    assert [stage.options.updates for stage in STAGES["base"]] == [150_000, 90_000, 0]


def test_pocket_covers_what_base_covers():
    assert RECIPES["pocket"].keys() == RECIPES["base"].keys()
    assert BACKBONE.updates > 0


@pytest.mark.parametrize("scale", STAGES)
def test_stages_name_known_tasks(scale):
    for stage in STAGES[scale]:
        assert stage.tasks.keys() <= TASKS.keys()
        assert stage.splits.keys() <= stage.tasks.keys()
    assert STAGES["pocket"][1].split("caption") == "pretrain-late"
    assert STAGES["pocket"][1].split("vqa") == "pretrain"


def test_rewards_share_all_sizes_of_boxes_without_overlap():
    bounds = [REWARDS["base"][size].areas for size in ("small", "medium", "large")]
    assert bounds == [(0, 1024), (1024, 9216), (9216, math.inf)]
    for sizes in REWARDS.values():
        assert sizes["small"].areas[1] == sizes["medium"].areas[0]
        assert sizes["medium"].areas[1] == sizes["large"].areas[0]


def test_unknown_recipes_are_told():
    with pytest.raises(UnivalError, match="no pocket recipe for image-generation"):
        recipe_for("image-generation", "pocket")
    with pytest.raises(UnivalError, match="choose a scale of base, pocket"):
        recipe_for("vqa", "large")
