"""Models that many tests share. They are never trained or changed."""

import pytest
from golden import fill, filled

from unival_core.config import CONFIGS
from unival_core.model import UnivalModel


@pytest.fixture(scope="session")
def tiny() -> UnivalModel:
    """The narrow model behind full-width encoders, with the recordings' weights."""
    return filled(CONFIGS["tiny"])


@pytest.fixture(scope="session")
def pocket() -> UnivalModel:
    """The laptop model, with weights by the same rule."""
    model = UnivalModel(CONFIGS["pocket"])
    fill(model)
    return model.eval()
