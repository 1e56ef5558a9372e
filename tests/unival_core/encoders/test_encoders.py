"""Media networks: shapes, folded norms, SpecAugment."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.unival_core.golden import fill, recorded, weight
from unival_core.config import CONFIGS, AudioConfig, ResNetConfig
from unival_core.encoders.audio import Cnn14, blank
from unival_core.encoders.image import ResNet, normalised
from unival_core.encoders.video import VideoResNet
from unival_core.errors import UnivalError
from unival_core.media.audio import log_mel, mel_matrix

SMALL = ResNetConfig(depths=(1, 2, 1), planes=(4, 8, 8), expansion=2, groups=2, stem=4)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(48, 48), (33, 64), (16, 16)])
def test_every_stage_but_the_first_halves_an_image(height: int, width: int) -> None:
    features = ResNet(SMALL).eval()(noise(2, 3, height, width))
    assert features.shape == (2, SMALL.width, -(-height // SMALL.stride), -(-width // SMALL.stride))


@torch.no_grad()
@pytest.mark.parametrize(("frames", "left"), [(1, 1), (8, 1), (16, 2), (17, 3)])
def test_pooling_and_later_stages_halve_time(frames: int, left: int) -> None:
    features = VideoResNet(SMALL).eval()(noise(1, 3, frames, 32, 32))
    assert features.shape == (1, SMALL.width, left, 2, 2)


@torch.no_grad()
@pytest.mark.parametrize("samples", [16_000, 8_000])
def test_audio_becomes_time_by_mel(samples: int) -> None:
    config = CONFIGS["pocket"].audio
    assert config is not None
    features = Cnn14(config).eval()(noise(2, samples))
    assert features.shape == (2, config.width, (samples // config.hop + 1) // 8, config.n_mels // 8)


def test_ten_published_seconds_are_150_tokens() -> None:
    config = AudioConfig()
    frames = config.samples // config.hop + 1
    assert (frames // 32) * (config.n_mels // 32) == 150


@pytest.mark.parametrize("dims", [2, 3])
def test_folded_norm_equals_the_norm(dims: int) -> None:
    network = (ResNet if dims == 2 else VideoResNet)(SMALL)
    fill(network)
    network.eval()
    x = noise(2, 3, *[20] * dims)
    conv, norm = network.conv1, network.bn1
    assert_close(normalised(x, conv, norm), norm(conv(x)), atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad(normalised(x, conv, norm).square().sum(), conv.weight)
    (wanted,) = torch.autograd.grad(norm(conv(x)).square().sum(), conv.weight)
    assert_close(gradient, wanted, atol=1e-3, rtol=1e-4)


def test_training_updates_the_statistics_once_per_batch() -> None:
    network = ResNet(SMALL).train()
    network(noise(2, 3, 48, 48))
    counts = {int(m.num_batches_tracked) for m in network.modules() if isinstance(m, nn.BatchNorm2d)}
    assert counts == {1}
    assert float(network.bn1.running_mean.abs().sum()) > 0


def test_head_exists_only_on_request() -> None:
    assert not hasattr(ResNet(SMALL), "fc")
    assert ResNet(ResNetConfig(depths=(1,), planes=(4,), classes=10)).fc.weight.shape == (10, 16)


def test_front_end_equals_the_recorded_one() -> None:
    tensors, _ = recorded("base_audio")
    config = CONFIGS["base"].audio
    assert config is not None
    assert_close(mel_matrix(config), tensors["melW"], atol=1e-7, rtol=1e-5)
    assert_close(log_mel(tensors["in.patch_audios"][:1], config)[0], tensors["logmel_item0"], atol=1e-4, rtol=1e-4)


def test_short_audio_is_refused() -> None:
    config = CONFIGS["pocket"].audio
    assert config is not None
    with pytest.raises(UnivalError, match="audio of 1119 samples: the model needs 1120, repeat or pad it"):
        Cnn14(config)(noise(1, 1119))
    assert Cnn14(config).eval()(noise(1, 1120)).shape[2] == 1


def test_stripes() -> None:
    torch.manual_seed(0)
    x = torch.ones(300, 40, 12)
    hidden = blank(x, dim=1, longest=9) == 0
    assert torch.equal(hidden, hidden[:, :, :1].expand_as(hidden))  # whole frames
    frames = hidden[:, :, 0].sum(1)
    assert (int(frames.min()), int(frames.max())) == (0, 16)  # two stripes of 0 to 8
    assert hidden[:, :, 0].any(0).all()  # anywhere
    bands = (blank(x, dim=2, longest=5) == 0)[:, 0].sum(1)
    assert (int(bands.min()), int(bands.max())) == (0, 8)
    assert torch.equal(blank(x, dim=1, longest=0), x)


def test_recipe_is_independent_of_order() -> None:
    like = torch.empty(3, 2)
    assert torch.equal(weight("decoder.output_projection.weight", like), weight("encoder.embed_tokens.weight", like))
    assert not torch.equal(weight("a.weight", like), weight("b.weight", like))
