"""Audio: reading, resampling, fixed length, and the log-mel front end of the audio network."""

from __future__ import annotations

import functools
import io
import math
import random
import wave
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unival_core.config import AudioConfig
from unival_core.errors import UnivalError
from unival_core.media import read_source

_MEL_BREAK_HZ, _HZ_PER_MEL, _MELS_PER_NEPER = 1000.0, 200.0 / 3.0, 27.0 / math.log(6.4)


def load_audio(source: bytes | str | Path) -> tuple[np.ndarray, int]:
    """Read an audio file as float32 mono samples in [-1, 1] (the mean of its channels) and its rate in Hz.

    16-bit PCM .wav needs nothing but the standard library; every other format needs the extra `audio`.
    """
    data, name = read_source(source)
    read = _read_pcm16_wav(data) or _read_soundfile(data, name)
    if not len(read[0]):
        raise UnivalError(f"{name}: holds no audio samples")
    return read


def int16_round_trip(samples: np.ndarray) -> np.ndarray:
    """Clip to [-1, 1], truncate to 16-bit integers and back, as the published data pipeline stores audio."""
    clipped = np.clip(samples.astype(np.float64), -1.0, 1.0)
    return (clipped * 32767.0).astype(np.int16).astype(np.float32) / np.float32(32767.0)


def fit_length(samples: np.ndarray, length: int, generator: random.Random | None = None) -> np.ndarray:
    """Cut or fill to exactly `length` samples: a short one is repeated whole, then zero-padded; a long one is cropped.

    The crop is the middle one, or a random one drawn from `generator` in training.
    """
    surplus = len(samples) - length
    if surplus > 0:
        start = surplus // 2 if generator is None else generator.randrange(surplus + 1)
        return samples[start : start + length]
    repeated = np.tile(samples, length // len(samples))
    return np.pad(repeated, (0, length - len(repeated)))


def resample(samples: Tensor, rate: int, target_rate: int) -> Tensor:
    """Compute band-limited resampling of `... x N` samples to `... x ceil(N * target_rate / rate)`.

    A Hann-windowed sinc of six zero crossings a side, cut off at 0.99 of the lower Nyquist frequency
    (Smith, "Digital Audio Resampling"); one convolution kernel for each output phase.
    """
    common = math.gcd(rate, target_rate)
    old, new = rate // common, target_rate // common
    if old == new:
        return samples
    crossings, cutoff = 6, 0.99 * min(old, new)
    reach = math.ceil(crossings * old / cutoff)
    taps = torch.arange(-reach, reach + old, dtype=torch.float64) / old
    phases = torch.arange(new, dtype=torch.float64) / new
    time = (taps[None, :] - phases[:, None]) * cutoff
    window = torch.cos(time.clamp(-crossings, crossings) * (math.pi / 2 / crossings)).square()
    kernel = (torch.sinc(time) * window * (cutoff / old)).to(samples)
    flat = F.pad(samples.reshape(-1, 1, samples.shape[-1]), (reach, reach + old))
    phased = F.conv1d(flat, kernel[:, None], stride=old)
    wanted = -(-samples.shape[-1] * new // old)
    return phased.transpose(1, 2).reshape(*samples.shape[:-1], -1)[..., :wanted]


def prepare_audio(
    samples: np.ndarray,
    rate: int,
    config: AudioConfig,
    *,
    resampling: bool = False,
    generator: random.Random | None = None,
) -> Tensor:
    """Return one model input: `config.samples` float32 values, after the 16-bit round trip and `fit_length`.

    Raises `UnivalError` when `rate` is not the model's and `resampling` was not asked for: the published pipeline
    never resamples by itself, and audio at a wrong rate gives a wrong answer without a sign of it.
    """
    if rate != config.sample_rate:
        if not resampling:
            raise UnivalError(
                f"the audio has {rate} samples a second, the model expects {config.sample_rate}: ask for resampling"
            )
        samples = resample(torch.from_numpy(samples), rate, config.sample_rate).numpy()
    return torch.from_numpy(fit_length(int16_round_trip(samples), config.samples, generator))


@functools.lru_cache(maxsize=8)
def mel_matrix(config: AudioConfig) -> Tensor:
    """Give the `(n_fft // 2 + 1) x n_mels` matrix from power spectrum to mel bands: triangles on Slaney's scale (linear
    to 1 kHz, logarithmic above), each of unit area. float32 on the CPU; shared by all callers, so never write into it.
    """
    frequencies = np.fft.rfftfreq(config.n_fft, 1.0 / config.sample_rate)
    corners = _mel_to_hz(np.linspace(_hz_to_mel(config.fmin), _hz_to_mel(config.fmax), config.n_mels + 2))
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    rising = (frequencies[:, None] - left) / (centre - left)
    falling = (right - frequencies[:, None]) / (right - centre)
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return torch.from_numpy((triangles * (2.0 / (right - left))).astype(np.float32))


def log_mel(waveforms: Tensor, config: AudioConfig, mel: Tensor | None = None) -> Tensor:
    """Compute decibel mel spectrogram, `B x N` samples to `B x (N // hop + 1) x n_mels`, always in float32.

    Power of a Hann-windowed transform of `n_fft` samples every `hop`, centred by reflection (N > n_fft / 2), through
    `mel_matrix` (`mel`, where that is known), as 10 log10(max(., 1e-10)): the front end of the PANN networks (arXiv
    1912.10211).
    """
    with torch.autocast(waveforms.device.type, enabled=False):
        samples, size = waveforms.float(), config.n_fft
        hann = torch.hann_window(size, device=samples.device)
        spectrum = torch.stft(samples, size, config.hop, window=hann, center=True, return_complex=True)
        power = spectrum.real.square() + spectrum.imag.square()
        bands = power.transpose(1, 2) @ (mel_matrix(config) if mel is None else mel).to(samples.device)
        return 10.0 * bands.clamp_min(1e-10).log10()


def _hz_to_mel(hertz: float) -> float:
    if hertz < _MEL_BREAK_HZ:
        return hertz / _HZ_PER_MEL
    return _MEL_BREAK_HZ / _HZ_PER_MEL + math.log(hertz / _MEL_BREAK_HZ) * _MELS_PER_NEPER


def _mel_to_hz(mels: np.ndarray) -> np.ndarray:
    knee = _MEL_BREAK_HZ / _HZ_PER_MEL
    return np.where(mels < knee, mels * _HZ_PER_MEL, _MEL_BREAK_HZ * np.exp((mels - knee) / _MELS_PER_NEPER))


def _read_pcm16_wav(data: bytes) -> tuple[np.ndarray, int] | None:
    """Return the samples of a 16-bit PCM .wav, or None for anything else."""
    try:
        with wave.open(io.BytesIO(data)) as file:
            if file.getsampwidth() != 2:
                return None
            rate = file.getframerate()
            values = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").reshape(-1, file.getnchannels())
    except (wave.Error, EOFError, ValueError):  # ValueError: cut off in the middle of a frame
        return None
    return (values.astype(np.float32) / np.float32(32768.0)).mean(axis=1), rate


def _read_soundfile(data: bytes, name: str) -> tuple[np.ndarray, int]:
    try:
        import soundfile
    except ImportError:
        raise UnivalError(
            f"{name}: only 16-bit PCM .wav is read without soundfile: install unival-merge[audio]"
        ) from None
    try:
        values, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise UnivalError(f"{name}: not an audio file that soundfile reads ({error})") from None
    return values.mean(axis=1), rate
