"""Images: reading and the published transform."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unival_core.errors import UnivalError
from unival_core.media import read_source


def load_image(source: bytes | str | Path | Image.Image) -> Image.Image:
    """Read an image, from the bytes of a file or its path, as RGB; one that is open is only converted."""
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    data, name = read_source(source)
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB")
    except OSError as error:  # pillow's own errors included
        raise UnivalError(f"{name}: not an image that pillow reads ({error})") from None


def image_to_tensor(image: Image.Image, side: int) -> Tensor:
    """Return one model input, 3 x side x side in [-1, 1]: bicubic to a square, the proportions are not kept."""
    square = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    return scale_pixels(torch.from_numpy(np.array(square)).permute(2, 0, 1))


def scale_pixels(pixels: Tensor) -> Tensor:
    """Scale uint8 values to float32 in [-1, 1]."""
    return (pixels.float() / 255.0 - 0.5) / 0.5
