"""Architecture numbers: stored and read back, checked, and enough to name every released setting."""

import json

import pytest

from unival_core.config import CONFIGS, AudioConfig, ResNetConfig, UnivalConfig, replace
from unival_core.errors import UnivalError


@pytest.mark.parametrize("name", CONFIGS)
def test_json_round_trip(name: str) -> None:
    config = CONFIGS[name]
    assert UnivalConfig.from_json(config.to_json()) == config
    assert isinstance(json.loads(config.to_json()), dict)


def test_published_vocabulary() -> None:
    base = CONFIGS["base"]
    assert (base.vocabulary, base.code_offset, base.bin_offset) == (59_457, 50_265, 58_457)
    assert (base.image_positions, base.head_width) == (1765, 64)


def test_released_settings_are_expressible() -> None:
    grounding = replace(CONFIGS["base"], video=None, audio=None)
    assert grounding.encoders == ("image",)
    assert replace(CONFIGS["base"], audio=None).encoders == ("image", "video")
    drawing = replace(grounding, code_image_size=256)
    assert drawing.code_side == 32
    assert CONFIGS["base"].audio is not None
    assert (CONFIGS["base"].audio.hop, replace(CONFIGS["base"].audio, hop=480).hop) == (200, 480)


def test_stride_follows_the_number_of_stages() -> None:
    assert CONFIGS["base"].image.stride == 32
    assert 48 // CONFIGS["pocket"].image.stride == 6


def test_pocket_image_kernels_can_start_its_video_network() -> None:
    assert CONFIGS["pocket"].image == CONFIGS["pocket"].video


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "list, not an object"),
        ('{"wdith": 3}', "has no wdith"),
        ('{"width": 64}', "missing .* 'heads'"),
        ('{"width": 64, "image": {"depth": 3}}', "ResNetConfig has no depth"),
    ],
)
def test_bad_json_is_one_line(text: str, message: str) -> None:
    with pytest.raises(UnivalError, match=message) as caught:
        UnivalConfig.from_json(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 7}, "width 96 does not divide into 7 heads"),
        ({"code_image_size": 128}, "image_bucket 12 cannot hold a grid of 16 x 16"),
        ({"position_grid": 13}, "image_bucket 12 cannot hold a grid of 13 x 13"),
        ({"token_bucket": 128}, "token_bucket 128 must stay below 2 x max_positions"),
    ],
)
def test_impossible_architectures(changes: dict[str, int], message: str) -> None:
    with pytest.raises(UnivalError, match=message):
        replace(CONFIGS["pocket"], **changes)


def test_impossible_encoders() -> None:
    with pytest.raises(UnivalError, match="as many planes as depths"):
        ResNetConfig(depths=(2, 2), planes=(8,))
    with pytest.raises(UnivalError, match="half the rate 8000"):
        AudioConfig(sample_rate=8_000)
