"""Weights in half precision on the CPU: how far answers move, as docs/tasks.md states it."""

import copy

import pytest
import torch

from tests.unival_core.test_model import draw, mixed, noise
from unival_core.generation import GenerationOptions, generate
from unival_core.inputs import Inputs
from unival_core.model import UnivalModel

# Of logits that spread by 0.5: bfloat16 keeps 8 bits, float16 11.
MOST = {torch.bfloat16: (0.01, 0.05), torch.float16: (0.001, 0.006)}  # in the mean, at most


def compare(model: UnivalModel, inputs: Inputs, dtype: torch.dtype) -> None:
    half, targets = copy.deepcopy(model).to(dtype), draw(5, len(inputs.tokens), 6)
    exact, rounded = model(inputs, targets), half(inputs, targets)
    assert rounded.dtype == dtype
    error = (rounded.float() - exact).abs()
    mean, most = MOST[dtype]
    assert float(exact.std()) > 0.3
    assert float(error.mean()) < mean
    assert float(error.max()) < most
    options = GenerationOptions(beam=2, max_len_b=4)
    for one, other in zip(generate(half, inputs, options), generate(model, inputs, options), strict=True):
        assert one[0].score == pytest.approx(other[0].score, abs=most)


@torch.no_grad()
@pytest.mark.parametrize("dtype", MOST, ids=str)
def test_half_precision_stays_close(pocket: UnivalModel, dtype: torch.dtype) -> None:
    """A text with padding, an image and a clip; and what has nothing to look at stays finite."""
    modality = torch.tensor([-1, 0, 2])
    inputs = Inputs(draw(1, 3, 9), images=noise(2, 1, 3, 16, 16), audios=0.1 * noise(4, 1, 4000), modality=modality)
    compare(pocket, inputs, dtype)
    nothing = copy.deepcopy(pocket).to(dtype)(Inputs(torch.ones(2, 3, dtype=torch.int64)), draw(5, 2, 4))
    assert bool(nothing.isfinite().all())


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("dtype", MOST, ids=str)
def test_all_media_stay_close_in_half_precision(pocket: UnivalModel, dtype: torch.dtype) -> None:
    compare(pocket, mixed(), dtype)
