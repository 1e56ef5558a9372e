"""What merged UnIVAL models answer to a few rows, kept for the report (`experiments.results.samples`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from experiments.grid.worker import Worker
from experiments.pages.views import open_study
from experiments.results.samples import COUNT, Row, add_samples, sampled_rows, write_image
from experiments.study.points import Expert
from experiments.unival.setups import PocketSetup
from experiments.unival.studies import MixtureStudy, study_named
from experiments.unival.subject import UnivalSubject
from unival_core import Ensemble, GenerationOptions, Prediction, UnivalModel, predict
from unival_core.data import Example, TaskDataset, collate


def make_samples(
    folder: str | Path, study: str, subject: UnivalSubject, count: int = COUNT, device: str = "cpu"
) -> int:
    """Keep the answers of every point between two experts, and of these, to the first rows of their tasks; return how
    many rows got samples.

    What is there already is not made again, so a killed run goes on. Raises StudyError where a checkpoint is not the
    one that the rows were evaluated with.
    """
    folder = Path(folder)

    def expert(name: str, kind: str) -> Expert:
        known = study_named(study)
        assert isinstance(known, MixtureStudy)  # others have no pairs
        return Expert(name, known.experts[name], kind)

    def answer(model: nn.Module, row: Row) -> list[dict[str, Any]]:
        assert isinstance(model, UnivalModel | Ensemble)
        data = subject.dataset(row["task"], row["split"], model.config)
        setup, options = subject.setup, subject.setup.generation(row["task"])
        draw = setup.images if isinstance(setup, PocketSetup) else None
        return answers(folder, model, data, options=options, count=count, draw=draw)

    return add_samples(folder, sampled_rows(open_study(folder, study)[0]), Worker(subject, device), expert, answer)


def answers(
    folder: Path,
    model: UnivalModel | Ensemble,
    data: TaskDataset,
    *,
    options: GenerationOptions | None = None,
    count: int = COUNT,
    draw: Callable[[Sequence[Sequence[int]]], Sequence[Image.Image]] | None = None,
) -> list[dict[str, Any]]:
    """Ask a model the first `count` sound rows of a data set, and return its answers as samples.

    Image codes are shown as the images that `draw` makes of them, if it is given.

    Each sample has a name, the prompt, the answer and the reference as text, `box` and `reference_box` as shares of
    the image's width and height (x0, y0, x1, y1) or None, and the image's file in `samples/` or None; frames of a
    video (`is_video`) lie side by side in it.
    """
    numbers = range(min(count, len(data)))
    found = [(number, example) for number in numbers if (example := data.get(number)) is not None]
    device = next(model.parameters()).device
    batch = collate([example for _, example in found]).to(device)
    with torch.inference_mode():
        said = predict(model, batch, data.task, data.tokenizer, answers=data.answers, options=options)
    samples = [
        sample_of(folder, data, number, example, answer) for (number, example), answer in zip(found, said, strict=True)
    ]
    if draw is not None and data.task.writes == "codes":
        for sample, image in zip(samples, draw([answer.answer for answer in said]), strict=True):
            sample |= {"answer": "", "reference": "", "image": write_image(folder, image)}
    return samples


def sample_of(folder: Path, data: TaskDataset, number: int, example: Example, answer: Prediction) -> dict[str, Any]:
    """Return one answer in words and boxes, its image written."""
    cells = data.table[number]
    asked = cells[data.task.asks] if data.task.asks else data.task.prompt(cells)
    is_box = data.task.writes == "box"
    return {
        "name": answer.name,
        "prompt": str(asked).strip(),
        "answer": "" if is_box else str(answer.answer),
        "reference": "" if is_box else in_words(answer.reference),
        "box": shares_of_image(answer.answer, example.size) if is_box else None,
        "reference_box": shares_of_image(answer.reference, example.size) if is_box else None,
        "is_video": example.medium == "video",
        "image": write_media(folder, example.media) if example.medium in ("image", "video") else None,
    }


def in_words(reference: Any) -> str:
    """Say what would have been right: weighted answers with the best first, all captions, or a word."""
    if isinstance(reference, Mapping):
        return ", ".join(sorted(map(str, reference), key=lambda answer: -reference[answer]))
    return " / ".join(map(str, reference)) if isinstance(reference, (list, tuple)) else str(reference)


def shares_of_image(box: Sequence[float], size: tuple[int, int] | None) -> list[float] | None:
    """Return a box in pixels as shares of width and height; None where it is none."""
    if size is None or not all(map(math.isfinite, box)):
        return None
    return [round(value / size[side % 2], 4) for side, value in enumerate(box)]


def write_media(folder: Path, media: torch.Tensor | None) -> str | None:
    """Write an image, or the frames of a video side by side, as PNG under a name of its content, once."""
    if media is None:
        return None
    frames = media.unsqueeze(1) if media.ndim == 3 else media  # 3 x frames x height x width
    strip = np.hstack([frame.permute(1, 2, 0).numpy() for frame in frames.unbind(1)])
    return write_image(folder, Image.fromarray(strip))
