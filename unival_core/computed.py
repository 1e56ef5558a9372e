"""What published files carry and this model computes: tables of position buckets, the front end from waveform to
spectrogram, a format version.

A merge of published files that goes into a live model may leave it in: `UnivalModel.load_state_dict` checks it and
leaves it out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from unival_core.attention import CODE_TAIL, code_ids, image_buckets, token_buckets
from unival_core.config import CODE_STRIDE, AudioConfig, UnivalConfig, replace
from unival_core.errors import UnivalError
from unival_core.media.audio import mel_matrix

CODE_CELLS = "decoder.image_position_idx"
COMPUTED = (
    "*.version",
    "*.token_rp_bucket",
    "*.image_rp_bucket",
    CODE_CELLS,
    "*.spectrogram_extractor.*",
    "*.logmel_extractor.*",
)
TOKENS = "encoder.embed_tokens.weight"
TIED = ("decoder.embed_tokens.weight", "decoder.output_projection.weight")  # the same matrix under two more names


def is_computed(name: str) -> bool:
    """Tell whether published files carry a tensor of this name that is no weight."""
    return any(fnmatchcase(name, pattern) for pattern in COMPUTED)


def leave_out_computed(model: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Take out of a state dict, of which a model below `prefix` is about to be loaded, what the model computes.

    Raises UnivalError where that is not what the model's config gives, or where the token matrix is not one.
    """
    assert isinstance(model.config, UnivalConfig)
    own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    check_computed(own, model.config)
    check_ties(own)
    for name in filter(is_computed, own):
        del state[f"{prefix}{name}"]


def check_ties(tensors: Mapping[str, Tensor], where: str = "the state dict") -> None:
    """Raise UnivalError where the names of the token matrix hold different ones."""
    for name in TIED:
        one, other = tensors.get(TOKENS), tensors.get(name)
        if one is None or other is None or one.data_ptr() == other.data_ptr():
            continue
        if not torch.equal(one, other):
            raise UnivalError(f"{where}: {name} differs from {TOKENS}: this model has one matrix for both")


def check_computed(file: Mapping[str, Tensor], config: UnivalConfig) -> None:
    """Compare the file's position tables (exactly) and audio front end (to rounding) with what this model computes.

    A model may write images of another size than it was pretrained with: the file's cells are compared at their own.
    """
    for pattern, compute in computed_tensors(config).items():
        for name in (name for name in file if fnmatchcase(name, pattern)):
            stored, wanted = file[name], compute()
            if name == CODE_CELLS and stored.shape != wanted.shape:
                side = min(code_image_size(stored), CODE_STRIDE * config.image_bucket)
                wanted = code_ids(replace(config, code_image_size=side))
            same = stored.shape == wanted.shape and (
                torch.equal(stored, wanted)
                if not wanted.is_floating_point()
                else torch.allclose(stored.float(), wanted, rtol=2e-3, atol=1e-5)  # of half precision
            )
            if not same:
                raise UnivalError(
                    f"{name}, {tuple(stored.shape)}, is not what the config gives, {tuple(wanted.shape)}: "
                    "pass the config that the file was trained with"
                )


def computed_tensors(config: UnivalConfig) -> dict[str, Callable[[], Tensor]]:
    """Say how to compute what `COMPUTED` names, by pattern."""
    cpu = torch.device("cpu")
    recipes: dict[str, Callable[[], Tensor]] = {
        "*.token_rp_bucket": lambda: token_buckets(
            config.max_positions, config.token_bucket, config.max_positions, cpu
        ),
        "*.image_rp_bucket": lambda: image_buckets(torch.arange(config.image_positions), config.image_bucket),
        CODE_CELLS: lambda: code_ids(config),
    }
    if (audio := config.audio) is not None:
        recipes["*.logmel_extractor.melW"] = lambda: mel_matrix(audio)
        recipes["*.stft.conv_real.weight"] = lambda: fourier_kernels(audio)[0]
        recipes["*.stft.conv_imag.weight"] = lambda: fourier_kernels(audio)[1]
    return recipes


def code_image_size(cells: Tensor) -> int:
    """Return the side, in pixels, of the images whose codes are at these cells (`code_ids`)."""
    return CODE_STRIDE * math.isqrt(max(0, len(cells) - CODE_TAIL - 1))


def fourier_kernels(config: AudioConfig) -> tuple[Tensor, Tensor]:
    """Return the windowed Fourier transform as the two convolution kernels of published files, bands x 1 x n_fft."""
    time = torch.arange(config.n_fft, dtype=torch.float64)
    angle = torch.arange(config.n_fft // 2 + 1)[:, None] * time * (2 * math.pi / config.n_fft)
    window = torch.hann_window(config.n_fft, dtype=torch.float64)
    return (angle.cos() * window).float().unsqueeze(1), (-angle.sin() * window).float().unsqueeze(1)
