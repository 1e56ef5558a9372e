"""BatchNorm recalibration and REPAIR on a UnIVAL model, whose evaluation folds BatchNorm into convolutions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.testing import assert_close

import merge
from tests.unival_core.golden import fill
from unival_core.config import CONFIGS
from unival_core.model import Inputs, UnivalModel

POCKET = CONFIGS["pocket"]


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def batch(seed: int) -> Inputs:
    words = torch.randint(4, POCKET.vocabulary, (8, 6), generator=torch.Generator().manual_seed(seed))
    return Inputs(words, images=noise(seed, 8, 3, 48, 48))


def forward(model: UnivalModel, inputs: Inputs) -> object:
    return model(inputs, inputs.tokens)


def model_with(seed: int) -> UnivalModel:
    torch.manual_seed(seed)
    return UnivalModel(POCKET).eval()


def test_only_the_network_that_sees_the_batches_is_recalibrated() -> None:
    model = UnivalModel(POCKET).eval()
    fill(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    merge.recalibrate_batchnorm(model, [batch(1), batch(2)], forward)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    statistics = ("running_mean", "running_var")
    assert changed == {n for n in before if n.startswith("encoder.embed_images.") and n.endswith(statistics)}
    network = model.encoder.get_submodule("embed_images")
    with torch.no_grad():
        entering = [network.get_submodule("conv1")(batch(seed).images).transpose(0, 1).flatten(1) for seed in (1, 2)]
    mean = torch.stack([values.mean(1) for values in entering]).mean(0)
    assert_close(network.get_submodule("bn1").running_mean, mean, rtol=1e-4, atol=1e-5)


def test_repair_gives_linear_layers_the_moments_between_the_ends() -> None:
    first, second, middle = (model_with(seed) for seed in (1, 2, 3))
    for model in (first, second):
        merge.recalibrate_batchnorm(model, [batch(1)], forward)
    middle.load_state_dict(merge.interpolate(first.state_dict(), second.state_dict(), 0.5))
    ends = tuple(merge.activation_statistics(model, [batch(1)], forward) for model in (first, second))
    lost = merge.activation_statistics(middle, [batch(1)], forward)
    merge.repair(middle, (ends[0], ends[1]), 0.5, [batch(1)], forward)
    seen = merge.activation_statistics(middle, [batch(1)], forward)
    for name in ("encoder.layers.0.fc1", "decoder.layers.1.fc2", "decoder.layers.1.encoder_attn.q_proj"):
        wanted = (ends[0][name].deviation + ends[1][name].deviation) / 2
        assert float((lost[name].deviation / wanted).mean()) < 0.9
        assert_close(seen[name].deviation, wanted, rtol=0.02, atol=0)
    assert middle.decoder.output_projection.weight is middle.encoder.embed_tokens.weight
