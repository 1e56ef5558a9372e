"""Audio: digits dialled on a telephone, and the bytes of the clips, images and videos that go into a column."""

import io
import wave

import numpy as np
from PIL import Image

from experiments.unival.world.concepts import KEYPAD, RATE

__all__ = ["animated_png", "dial", "png", "wav"]

SHORTEST = 1.02  # seconds: readers repeat shorter clips to fill two seconds, which would dial the number twice
RAMP = int(0.005 * RATE)  # samples over which a tone rises and falls, so that it does not click
COMPRESSION = 4  # of 9: a quarter faster than the usual 6, a few per cent larger


def dial(digits: list[int], rng: np.random.Generator, snr: tuple[float, float]) -> np.ndarray:
    """Return the keys' tone pairs one after the other with gaps, a level and white noise of their own (float32 in
    -1..1).

    `snr` bounds the ratio of tone to noise power in decibels. Lasts 1 to 1.4 seconds for up to four digits.
    """
    pieces = [np.zeros(int(rng.uniform(0.03, 0.1) * RATE))]
    for digit in digits:
        pieces += [_tone(KEYPAD[digit], rng), np.zeros(int(rng.uniform(0.04, 0.12) * RATE))]
    samples = np.concatenate(pieces)
    missing = max(0, int(SHORTEST * RATE) - len(samples))
    before = int(rng.integers(missing + 1))
    samples = np.pad(samples, (before, missing - before))
    noise = rng.normal(0.0, np.sqrt(0.25 / 10 ** (rng.uniform(*snr) / 10)), len(samples))  # a tone pair's power is 1/4
    level = rng.uniform(0.25, 0.9) / max(1.0, float(np.abs(samples + noise).max()))
    return ((samples + noise) * level).astype(np.float32)


def _tone(pair: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    time = np.arange(int(rng.uniform(0.11, 0.19) * RATE)) / RATE
    low, high = (0.5 * np.sin(2 * np.pi * hertz * time + rng.uniform(0, 2 * np.pi)) for hertz in pair)
    ramp = np.minimum(1.0, np.arange(1, len(time) + 1) / RAMP)
    return (low + high) * ramp * ramp[::-1]


def wav(samples: np.ndarray) -> bytes:
    """Write 16-bit mono PCM."""
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((samples * 32767.0).astype("<i2").tobytes())
    return data.getvalue()


def png(image: Image.Image) -> bytes:
    """Return a PNG file."""
    data = io.BytesIO()
    image.save(data, "PNG", compress_level=COMPRESSION)
    return data.getvalue()


def animated_png(frames: list[Image.Image]) -> bytes:
    """Return an APNG file with every frame, equal neighbours included."""
    data = io.BytesIO()
    frames[0].save(data, "PNG", save_all=True, append_images=frames[1:], compress_level=COMPRESSION)
    return data.getvalue()
