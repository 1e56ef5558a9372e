"""One small pocket for all tests of a process: who writes into it takes a copy."""

import pytest

from tests.experiments.made_pocket import TINY, make_pocket


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """The pretrained model, and experts for questions and entailment of two seeds."""
    return make_pocket(tmp_path_factory.mktemp("pocket") / "home", tuple(TINY.experts), seeds=(0, 1))
