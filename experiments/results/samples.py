"""What models between two experts answer to a few examples, kept for the report: FOLDER/samples.jsonl, with images
once each in FOLDER/samples/ (`experiments.pages.views.read_samples` says what a line holds).

A line belongs to one evaluated row of the study by that row's `key`. Rows that were evaluated again have other keys, so
that samples of other weights are never shown.
"""

# What users give is checked, whatever its type is said to be.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from experiments.atomic import write_whole
from experiments.errors import StudyError
from experiments.grid.lines import append_lines, entries
from experiments.grid.rows import ROW_DIGEST, Records
from experiments.grid.subject import Subject, opened
from experiments.grid.worker import Job, Worker
from experiments.pages.views import (
    experts_of,
    main_metrics,
    on_split,
    one_policy,
    open_study,
    pairs_of,
    reported_split,
    weights_only,
)
from experiments.results.grids import grid_of
from experiments.study.cells import expert_named
from experiments.study.points import Cell, Expert, Point
from experiments.study.study import Study
from merge import digest

COUNT = 8  # examples a row
FILE, IMAGES = "samples.jsonl", "samples"
FIELDS = ("key", "shares", "experts", "method", "batchnorm", "seed", "task", "split")  # of the row
PARTS = ("prompt", "text", "reference", "image", "table")  # of a sample, besides its title
LARGEST, SMALLEST = 512, 96  # pixels of the longer side of an image on a page

Row = Mapping[str, Any]
Answer = Callable[[nn.Module, Row], list[dict[str, Any]]]  # the samples of a model, for a row of it


def make_samples(
    study: Study, folder: str | Path, count: int = COUNT, *, device: str = "cpu", progress: bool = True
) -> int:
    """Show the first `count` examples of every task that has a function for it, and what models between two experts
    answer to them; return how many rows got samples.

    Models and splits are those of `sampled_rows`. What is there already is not made again. StudyError where no task
    has `show`, where it fails, and where an expert is not the one that the rows were evaluated with.
    """
    shown = [name for name, task in study.tasks.items() if task.show is not None]
    if not shown:
        raise StudyError(f"study {study.name}: no task says what to show of an example: give Task(..., show=function)")
    folder = Path(folder)
    subject = grid_of(study, folder).subject
    rows = [row for row in sampled_rows(open_study(folder, study.name)[0]) if row["task"] in shown]

    def answer(model: nn.Module, row: Row) -> list[dict[str, Any]]:
        show = study.tasks[row["task"]].show
        assert show is not None
        return [one for number in range(count) for one in samples_of(folder, show, model, row, number)]

    named = lambda name, kind: expert_named(study, name)  # noqa: E731
    return add_samples(folder, rows, Worker(subject, device), named, answer, progress=progress)


def add_samples(
    folder: Path,
    rows: Records,
    worker: Worker,
    expert: Callable[[str, str], Expert],
    answer: Answer,
    *,
    progress: bool = True,
) -> int:
    """Add what `answer` returns for every row that has no samples yet, of the model that the row was evaluated with;
    return how many rows had none.

    `expert` returns an expert by its name and the kind of a row's. Stopped, the next call goes on.
    """
    file = folder / FILE
    there = {entry.get("key") for _, entry in entries(file)} if file.exists() else set[Any]()
    wanted = [row for row in rows if row["key"] not in there]
    checked: set[tuple[int, str]] = set()
    for row in tqdm(wanted, desc="samples", disable=None if progress else True):
        experts = {name: expert(name, row["experts"]) for name in row["shares"]}
        point = Point(experts, row["shares"], row["method"], row["batchnorm"])
        refuse_other_weights(row, point, worker.subject, checked)
        cell = Cell(point, row["task"], row["split"])
        model = worker.model_for(Job(row["study"], cell, row["seed"], {}, {}, row["data"])).eval()
        with torch.no_grad():
            line = {name: row[name] for name in FIELDS} | {"samples": answer(model, row)}
        append_lines(file, [json.dumps(line, ensure_ascii=False, allow_nan=False)])
    return len(wanted)


def sampled_rows(rows: Records) -> Records:
    """Return a row for each own task of every merged point between two experts and of these, on the reported split."""
    own = weights_only(one_policy(on_split(main_metrics(rows), reported_split(rows))))
    pairs = [set(pair) for pair in pairs_of(own)]
    kinds = {row["experts"] for row in own if len(experts_of(row)) == 2}
    return [
        row
        for row in own
        if row["experts"] in kinds and any({*experts_of(row), row["owner"]} <= pair for pair in pairs)
    ]


def refuse_other_weights(row: Row, point: Point, subject: Subject, checked: set[tuple[int, str]]) -> None:
    """Raise StudyError where an expert's checkpoint is not the one of the row; each is looked at once."""
    for name, expert in point.experts.items():
        place = (row["seed"], expert.id)
        if place not in checked:
            source = subject.source(expert, row["seed"])
            here, there = digest(opened(source), ROW_DIGEST), row["inputs"][name]
            if here != there:
                raise StudyError(f"{source.path} has the digest {here}, row {row['key']} {there}: run the study again")
            checked.add(place)


def samples_of(folder: Path, show: Callable[..., Any], model: nn.Module, row: Row, number: int) -> list[dict[str, Any]]:
    """Return what a task's function shows of an example, as samples, with images written; none behind the last
    example, where it raises IndexError or returns None.

    It returns text, an image (a path, or an array (H, W) or (H, W, 3)), a table (a list of lines), or a mapping: its
    prompt, text, reference, image and table are one sample, anything else is another one under its own title.
    """
    place, title = f"task {row['task']}: show of example {number} of split {row['split']}", f"example {number}"
    try:
        given = show(model, row["split"], number)
    except IndexError:
        return []
    except Exception as error:
        raise StudyError(f"{place}: {type(error).__name__}: {error}") from error
    if given is None:
        return []
    if not isinstance(given, Mapping):
        return [{"title": title, **part_of(folder, given, place)}]
    own: dict[str, Any] = {"title": title}
    others: list[dict[str, Any]] = []
    for name, value in given.items():
        part = part_of(folder, value, f"{place}, {name}")
        if name not in PARTS:
            others.append({"title": f"{title}, {name}", **part})
        elif name in ("image", "table") and name not in part:
            raise StudyError(f"{place}: its {name} is a {type(value).__name__}")
        else:
            own |= {name: part["text"]} if name in ("prompt", "reference") and "text" in part else part
    return [own, *others] if len(own) > 1 else others


def part_of(folder: Path, given: Any, place: str) -> dict[str, Any]:
    """Return text, an image or a table as a part of a sample. StudyError for what is none of these."""
    if isinstance(given, (str, bool, int, float)):
        return {"text": str(given)}
    if isinstance(given, Tensor):
        given = given.detach().cpu().numpy()
    if isinstance(given, (Path, Image.Image)) or (isinstance(given, np.ndarray) and given.ndim > 1):
        try:
            return {"image": write_image(folder, fitted(image_of(given)))}
        except (OSError, ValueError, TypeError) as error:
            raise StudyError(f"{place}: no image: {error}") from error
    if isinstance(given, np.ndarray):
        given = given.tolist()
    if isinstance(given, (list, tuple)):
        lines = [line if isinstance(line, (list, tuple)) else [line] for line in given]
        return {"table": [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in line] for line in lines]}
    told = f"a {type(given).__name__}"
    raise StudyError(
        f"{place} returned {told}: give text, a Path or an array of an image, a list of lines, or a mapping"
    )


def image_of(given: Path | Image.Image | np.ndarray) -> Image.Image:
    """Return an image in RGB; of an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) with bytes, or shares of white.

    Other numbers are stretched from their least to their largest.
    """
    if isinstance(given, Path):
        with Image.open(given) as image:
            return image.convert("RGB")
    if isinstance(given, Image.Image):
        return given.convert("RGB")
    values = given[..., 0] if given.ndim == 3 and given.shape[2] == 1 else given
    if not (values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (3, 4))):
        raise ValueError(f"an array of shape {list(given.shape)} is not (H, W) or (H, W, 3)")
    if values.dtype != np.uint8:
        values = np.nan_to_num(values.astype(np.float64))
        low, high = min(values.min(), 0.0), max(values.max(), 1.0)
        values = (255 * (values - low) / (high - low)).round().astype(np.uint8)
    return Image.fromarray(values).convert("RGB")


def fitted(image: Image.Image) -> Image.Image:
    """Return an image that a page can show: large ones are made smaller, of tiny ones each pixel is a square."""
    longest = max(image.size)
    if longest > LARGEST:
        image.thumbnail((LARGEST, LARGEST))
    elif longest < SMALLEST:
        times = -(-SMALLEST // longest)
        image = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    return image


def write_image(folder: Path, image: Image.Image) -> str:
    """Write an image as PNG into the folder's samples, under a name of its content, once; return the name."""
    data = io.BytesIO()
    image.save(data, "PNG")
    file = folder / IMAGES / f"{hashlib.sha256(data.getvalue()).hexdigest()[:16]}.png"
    if not file.is_file():
        write_whole(file, data.getvalue())
    return file.name
