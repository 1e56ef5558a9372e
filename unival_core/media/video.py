"""Videos: reading, choice of frames, the published crop."""

from __future__ import annotations

import io
import itertools
import random
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageSequence, UnidentifiedImageError
from torch import Tensor

from unival_core.errors import UnivalError
from unival_core.media import read_source
from unival_core.media.image import scale_pixels


def load_video(source: bytes | str | Path, choose: Callable[[int], list[int]] | None = None) -> np.ndarray:
    """Read a video, from the bytes of a file or its path, as uint8 T x H x W x 3.

    `choose` gets the number of frames and names those wanted, `functools.partial(choose_frames, count=16)` for example,
    so that a long video need not fit into memory. Animated PNG, WebP and GIF are read by pillow; every other format
    needs the extra `video`.
    """
    data, name = read_source(source)
    try:
        with Image.open(io.BytesIO(data)) as video:
            wanted = choose(getattr(video, "n_frames", 1)) if choose else None
            return _stack((np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(video)), wanted, name)
    except UnidentifiedImageError:
        return _decode_with_av(data, name, choose)
    except OSError as error:
        raise UnivalError(f"{name}: damaged ({error})") from None


def choose_frames(length: int, count: int, generator: random.Random | None = None) -> list[int]:
    """Choose `count` ascending frame numbers, one from each of `count` equal parts of a video of `length` frames.

    Evaluation takes the middle of each part; training (a `generator`) a random one but the part's last. Where some
    part has a single frame, training draws from the whole video instead. Short videos repeat their last frame.
    """
    if length < 1 or count < 1:
        raise UnivalError(f"cannot choose {count} frames of a video of {length}")
    wanted = min(count, length)
    bounds = np.linspace(0, length, wanted + 1).astype(int).tolist()
    parts = [(start, end - 1) for start, end in itertools.pairwise(bounds)]
    if generator is None:
        chosen = [(first + last) // 2 for first, last in parts]
    elif all(first < last for first, last in parts):
        chosen = [generator.choice(range(first, last)) for first, last in parts]
    else:
        chosen = sorted(generator.sample(range(length), wanted))
    return chosen + chosen[-1:] * (count - wanted)


def video_to_tensor(frames: np.ndarray, side: int) -> Tensor:
    """Return one model input, 3 x T x side x side in [-1, 1], from uint8 T x H x W x 3: the centre, black beyond the
    edges."""
    height, width = frames.shape[1:3]
    canvas = torch.zeros(3, len(frames), side, side, dtype=torch.uint8)
    (from_y, to_y, high), (from_x, to_x, wide) = _centre(height, side), _centre(width, side)
    centre = torch.from_numpy(frames[:, from_y : from_y + high, from_x : from_x + wide].copy())
    canvas[:, :, to_y : to_y + high, to_x : to_x + wide] = centre.permute(3, 0, 1, 2)
    return scale_pixels(canvas)


def _centre(size: int, side: int) -> tuple[int, int, int]:
    """Tell where the centre starts in the source and in the target, and how long it is."""
    return max(0, round((size - side) / 2)), max(0, (side - size) // 2), min(size, side)


def _decode_with_av(data: bytes, name: str, choose: Callable[[int], list[int]] | None) -> np.ndarray:
    try:
        import av
        from av.error import FFmpegError
    except ImportError:
        raise UnivalError(
            f"{name}: only animated PNG, WebP and GIF are read without PyAV: install unival-merge[video]"
        ) from None
    try:
        wanted = None
        if choose:
            with av.open(io.BytesIO(data)) as container:  # a packet is a frame; counting them decodes nothing
                wanted = choose(sum(packet.size > 0 for packet in container.demux(video=0)))
        with av.open(io.BytesIO(data)) as container:
            return _stack((frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)), wanted, name)
    except (FFmpegError, IndexError) as error:
        raise UnivalError(f"{name}: not a video that PyAV reads ({error})") from None


def _stack(frames: Iterable[np.ndarray], wanted: list[int] | None, name: str) -> np.ndarray:
    """Return the wanted frames (all by default); a video that ends before its container said repeats its last frame."""
    if wanted is None:
        chosen = list(frames)
    else:
        kept: list[np.ndarray] = []
        for number, frame in enumerate(itertools.islice(frames, max(wanted) + 1)):
            kept += [frame] * wanted.count(number)
        chosen = kept + kept[-1:] * (len(wanted) - len(kept))
    if not chosen:
        raise UnivalError(f"{name}: holds no frames")
    return np.stack(chosen)
