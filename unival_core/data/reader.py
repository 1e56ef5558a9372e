"""From the cell of a row to a decoded medium."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from unival_core.config import AudioConfig
from unival_core.data.media_cache import MediaCache, Medium
from unival_core.errors import UnivalError
from unival_core.media import read_source
from unival_core.media.audio import load_audio, prepare_audio
from unival_core.media.image import image_to_tensor, load_image
from unival_core.media.video import choose_frames, load_video, video_to_tensor


@dataclass(frozen=True)
class MediaReader:
    """Reads media of one kind ("image", "video", "audio") at one size, through a cache if there is one.

    A cell holds base64 (of either alphabet) or, where there is a dot in it, a path relative to the folder given.
    """

    kind: str
    side: int
    frames: int = 0
    audio: AudioConfig | None = None
    resample: bool = False
    cache: MediaCache | None = None

    def __call__(self, cell: str, folder: Path, generator: Random | None = None) -> tuple[Medium, bool]:
        """Return the medium of a cell, and whether it is in RAM to stay.

        A `generator` draws the frames of a video and the part of a long audio (training); without one they are the
        middle ones. What is drawn is not kept, and what is kept is never given for a draw that could differ.
        """
        if self.cache is None:
            return self.decode(cell_bytes(cell, folder), generator)[0], False
        whole_key = self._key(cell, folder)
        middle_key = f"{whole_key} middle"
        for key in (whole_key, middle_key)[: 2 if generator is None else 1]:
            if (known := self.cache.get(key)) is not None:
                return known, self.cache.put(key, known)
        medium, is_whole = self.decode(cell_bytes(cell, folder), generator)
        if not is_whole and generator is not None:
            return medium, False
        return medium, self.cache.put(whole_key if is_whole else middle_key, medium)

    def decode(self, data: Any, generator: Random | None = None) -> tuple[Medium, bool]:
        """Return the medium of a file, and whether it is whole, so that no draw could give another; UnivalError if
        damaged."""
        try:
            if self.kind == "image":
                return self._image(data), True
            return self._video(data, generator) if self.kind == "video" else self._audio(data, generator)
        except (UnivalError, MemoryError):
            raise
        except Exception as error:  # decoders answer damaged bytes with nearly any exception there is
            raise UnivalError(f"damaged {self.kind} ({type(error).__name__}: {error})") from error

    def _image(self, data: Any) -> Medium:
        image = load_image(data)
        return Medium(integers(image_to_tensor(image, self.side), 127.5, 127.5, torch.uint8), image.size)

    def _video(self, data: bytes | str | Path, generator: Random | None) -> tuple[Medium, bool]:
        lengths: list[int] = []

        def choose(length: int) -> list[int]:
            lengths.append(length)
            return choose_frames(length, self.frames, generator)

        video = load_video(data, choose)
        values = integers(video_to_tensor(video, self.side), 127.5, 127.5, torch.uint8)
        return Medium(values, (video.shape[2], video.shape[1])), lengths[0] <= self.frames

    def _audio(self, data: bytes | str | Path, generator: Random | None) -> tuple[Medium, bool]:
        if self.audio is None:
            raise UnivalError("the model has no audio encoder: load one that has")
        samples, rate = load_audio(data)
        values = prepare_audio(samples, rate, self.audio, resampling=self.resample, generator=generator)
        is_whole = len(samples) * self.audio.sample_rate <= self.audio.samples * rate
        return Medium(integers(values, 32767.0, 0.0, torch.int16), (0, 0)), is_whole

    def _key(self, cell: str, folder: Path) -> str:
        """Return what the decoded medium depends on."""
        content = blake2b(cell.encode(), digest_size=16).hexdigest()
        if is_path(cell):
            path = folder / cell
            stat = path.stat() if path.exists() else None
            content = f"{path} {stat and (stat.st_size, stat.st_mtime_ns)}"
        return f"{self.kind} {self.side} {self.frames} {self.audio} {content}"


def integers(values: Tensor, scale: float, shift: float, dtype: torch.dtype) -> Tensor:
    """Turn model inputs into the integers they were made of, a quarter or half of the bytes; nothing is lost."""
    return (values * scale + shift).round().to(dtype)


def is_path(cell: str) -> bool:
    """Tell whether a media cell names a file: neither alphabet of base64 has a dot."""
    return "." in cell


def cell_bytes(cell: str, folder: Path) -> bytes:
    """Return the bytes of a file that a cell holds or names."""
    if is_path(cell):
        return read_source(folder / cell)[0]
    text = cell.strip()
    alphabet = b"-_" if "-" in text or "_" in text else b"+/"
    try:
        data = base64.b64decode(f"{text}{'=' * (-len(text) % 4)}", altchars=alphabet, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UnivalError(f"the media cell is neither a path nor base64 ({error})") from None
    if not data:
        raise UnivalError("the media cell is empty")
    return data
