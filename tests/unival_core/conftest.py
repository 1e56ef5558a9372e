"""Models that many tests share. They are never trained or changed."""

import pytest

from tests.unival_core.golden import SHARED, fill, filled
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


@pytest.fixture(scope="session")
def base() -> UnivalModel:
    """The full-size model; only where there is something to compare it with."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the recordings in {SHARED}")
    return filled(CONFIGS["base"])
