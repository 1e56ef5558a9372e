"""Images of captions: codes drawn by the model, decoded by a tokenizer, the best first, on one sheet."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from unival_core.data.batch import collate
from unival_core.data.dataset import asked
from unival_core.data.task import Task
from unival_core.ensemble import Ensemble
from unival_core.errors import UnivalError
from unival_core.evaluation import constraint_of
from unival_core.generation import generate
from unival_core.image_codes import ImageCodes, to_pixels
from unival_core.model import UnivalModel
from unival_core.vocabulary import Tokenizer

PORTION = 4  # images decoded at once: one of 256 x 256 pixels takes about half a gigabyte
GAP = 2  # pixels between images of a sheet

Scorer = Callable[[Sequence[Image.Image], str], Sequence[float]]
"""How well each image fits a text."""


@dataclass(frozen=True)
class DrawnImage:
    """An image, the codes it was made of, row by row, the mean log-probability of these with eos, and its fit to the
    text, where that was asked for."""

    image: Image.Image
    codes: list[int]
    score: float
    fit: float | None = None


def draw_images(
    model: UnivalModel | Ensemble,
    tokenizer: Tokenizer,
    codec: ImageCodes,
    task: Task,
    text: str,
    *,
    samples: int = 1,
    seed: int = 0,
    scorer: Scorer | None = None,
) -> list[DrawnImage]:
    """Draw images of a text as a task that writes codes asks for them, the best first: by `scorer` if there is one,
    else by their probability.

    The same seed gives the same images on the same machine. Raises UnivalError where model and tokenizer have other
    codes.
    """
    if codec.config.codes != tokenizer.codes:
        raise UnivalError(
            f"the image tokenizer has {codec.config.codes} codes, the model writes {tokenizer.codes}: take the one "
            "that it was trained with"
        )
    task = task.sized_for(model.config)
    batch = collate([asked(task, task.row_of(text), None, tokenizer)]).to(next(model.parameters()).device)
    found = generate(
        model,
        batch.inputs,
        replace(task.generation, beam=samples, seed=seed),
        constraint=constraint_of(task, tokenizer, None),
        code_rows=batch.code_rows,
    )[0]
    codes = [tokenizer.ids_to_codes(one.answer) for one in found]
    images = decoded(codec, codes, model.config.code_side)
    drawn = [DrawnImage(image, own, one.score) for image, own, one in zip(images, codes, found, strict=True)]
    if scorer is None:
        return drawn
    fits = scorer(images, text)
    drawn = [replace(one, fit=float(fit)) for one, fit in zip(drawn, fits, strict=True)]
    return sorted(drawn, key=lambda one: -(one.fit or 0.0))


@torch.no_grad()
def decoded(codec: ImageCodes, codes: Sequence[Sequence[int]], side: int) -> list[Image.Image]:
    """Decode images of side x side codes each."""
    grids = torch.tensor(codes, device=codec.post_quant_conv.weight.device).view(-1, side, side)
    pixels = [to_pixels(codec.decode(grids[first : first + PORTION])) for first in range(0, len(grids), PORTION)]
    return [Image.fromarray(one.cpu().numpy()) for portion in pixels for one in portion]


def contact_sheet(images: Sequence[Image.Image], columns: int = 0) -> Image.Image:
    """Put images of one size on a white sheet, row by row; about as many rows as columns, if those are not given."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows, (width, height) = math.ceil(len(images) / columns), images[0].size
    size = (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP)
    sheet = Image.new("RGB", size, (255, 255, 255))
    for place, image in enumerate(images):
        sheet.paste(image, ((place % columns) * (width + GAP), place // columns * (height + GAP)))
    return sheet


def save_images(drawn: Sequence[DrawnImage], path: Path) -> list[Path]:
    """Save the sheet as `path`, and beside it each of several images: `out-1.png` is the best of `out.png`."""
    paths = image_paths(path, len(drawn))
    images = [one.image for one in drawn]
    for image, file in zip([contact_sheet(images), *images], paths, strict=False):
        try:
            image.save(file)
        except (OSError, ValueError) as error:
            raise UnivalError(f"{file}: {error}") from None
    return paths


def image_paths(path: Path, count: int) -> list[Path]:
    """Say where so many images are saved: the sheet first; of one image there is no other file."""
    digits = len(str(count))
    singles = [path.with_name(f"{path.stem}-{number:0{digits}}{path.suffix}") for number in range(1, count + 1)]
    return [path, *(singles if count > 1 else [])]


def clip_scorer(folder: str | Path, device: torch.device | str = "cpu") -> Scorer:
    """Make a scorer of a CLIP folder (arXiv 2103.00020): the cosine of image and text, as published re-ranking has it.

    Texts longer than CLIP reads are cut, and "/" is left out of them, as there. Needs transformers (extra `hf`); raises
    UnivalError without it, and for a folder that holds no CLIP.
    """
    try:
        transformers: Any = importlib.import_module("transformers")  # optional: the extra `hf`
    except ImportError:
        raise UnivalError("CLIP needs transformers: pip install 'unival-merge[hf]'") from None
    try:
        network = transformers.CLIPModel.from_pretrained(folder, local_files_only=True)
        processor = transformers.CLIPProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UnivalError(f"{folder}: no CLIP folder: {' '.join(str(error).split())}") from None
    network = network.to(device).eval()

    @torch.no_grad()
    def fits(images: Sequence[Image.Image], text: str) -> list[float]:
        given = processor(
            text=[text.replace("/", "")], images=list(images), return_tensors="pt", padding=True, truncation=True
        )
        said = network(**given.to(device))
        return torch.cosine_similarity(said.image_embeds, said.text_embeds).tolist()

    return fits
