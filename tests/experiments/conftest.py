"""One small pocket for all tests of a process: who writes into it takes a copy."""

import pytest

from experiments.unival.world.build import make_world
from tests.experiments.made_pocket import TINY, make_pocket


@pytest.fixture(scope="session")
def micro_world(tmp_path_factory):
    """A world of a dozen rows, seed 0: making it takes seconds, copying it nothing."""
    return make_world(tmp_path_factory.mktemp("world") / "micro", 0, "micro")


@pytest.fixture(scope="session")
def home(tmp_path_factory, micro_world):
    """The pretrained model, and experts for questions and entailment of two seeds."""
    return make_pocket(tmp_path_factory.mktemp("pocket") / "home", micro_world, tuple(TINY.experts), seeds=(0, 1))
