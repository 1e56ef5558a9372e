"""What merged models answer to a few rows, kept for the report: DIR/samples.jsonl, images once each in DIR/samples/.

A line belongs to one evaluated row of the study by that row's `key`, and holds the first examples of its split. Rows
that were evaluated again have other keys, so that samples of other weights are never shown.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from experiments.errors import StudyError
from experiments.grid.lines import append_lines
from experiments.grid.rows import ROW_DIGEST, Records
from experiments.grid.worker import Job, Worker
from experiments.pages.views import (
    experts_of,
    main_metrics,
    on_split,
    one_policy,
    open_study,
    pairs_of,
    read_samples,
    reported_split,
    weights_only,
)
from experiments.study.points import Cell, Expert, Point
from experiments.unival.studies import MixtureStudy, study_named
from experiments.unival.subject import UnivalSubject
from merge import digest, open_checkpoint
from unival_core import Ensemble, GenerationOptions, Prediction, UnivalModel, predict
from unival_core.data import Example, TaskDataset, collate

COUNT = 8  # examples a row
FIELDS = ("key", "shares", "experts", "method", "batchnorm", "seed", "task", "split")  # of the row


def make_samples(folder: str | Path, study: str, subject: UnivalSubject, count: int = COUNT) -> int:
    """Keep the answers of every point between two experts, and of these, to the first rows of their tasks; return how
    many rows got samples.

    What is there already is not made again, so a killed run goes on. Raises StudyError where a checkpoint is not the
    one that the rows were evaluated with.
    """
    rows, _ = open_study(folder, study)
    there = read_samples(folder)
    wanted = [row for row in sampled_rows(rows) if row["key"] not in there]
    worker, checked = Worker(subject), set[tuple[int, str]]()
    for row in tqdm(wanted, desc="samples", disable=None):
        job = Job(study, Cell(point_of(row, study), row["task"], row["split"]), row["seed"], {}, {}, row["data"])
        refuse_other_weights(row, job.cell.point, subject, checked)
        model = worker.model_for(job)
        assert isinstance(model, UnivalModel | Ensemble)
        data = subject.dataset(row["task"], row["split"], model.config)
        write_samples(folder, row, model, data, options=subject.setup.generation(row["task"]), count=count)
    return len(wanted)


def write_samples(
    folder: str | Path,
    row: Mapping[str, Any],
    model: UnivalModel | Ensemble,
    data: TaskDataset,
    *,
    options: GenerationOptions | None = None,
    count: int = COUNT,
) -> list[dict[str, Any]]:
    """Ask a model the first `count` sound rows of a data set, and add its answers to the samples of a result row.

    Each sample has a name, the prompt, the answer and the reference as text, `box` and `reference_box` as shares of
    the image's width and height (x0, y0, x1, y1) or None, and the image's file in `samples/` or None; frames of a
    video (`is_video`) lie side by side in it.
    """
    numbers = range(min(count, len(data)))
    found = [(number, example) for number in numbers if (example := data.get(number)) is not None]
    device = next(model.parameters()).device
    batch = collate([example for _, example in found]).to(device)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        said = predict(model, batch, data.task, data.tokenizer, answers=data.answers, options=options)
    model.train(was_training)
    samples = [
        sample_of(Path(folder), data, number, example, answer)
        for (number, example), answer in zip(found, said, strict=True)
    ]
    line = {name: row[name] for name in FIELDS} | {"samples": samples}
    append_lines(Path(folder) / "samples.jsonl", [json.dumps(line, ensure_ascii=False, allow_nan=False)])
    return samples


def sampled_rows(rows: Records) -> Records:
    """Return a row for each task of every merged point between two experts and of these, on the reported split."""
    own = weights_only(one_policy(on_split(main_metrics(rows), reported_split(rows))))
    pairs = [set(pair) for pair in pairs_of(own)]
    kinds = {row["experts"] for row in own if len(experts_of(row)) == 2}
    return [
        row for row in own if row["experts"] in kinds and any({*experts_of(row), row["task"]} <= pair for pair in pairs)
    ]


def point_of(row: Mapping[str, Any], study: str) -> Point:
    """Return the point that a row was evaluated at."""
    known = study_named(study)
    assert isinstance(known, MixtureStudy)  # others have no pairs
    experts = {name: Expert(name, known.experts[name], row["experts"]) for name in row["shares"]}
    return Point(experts, row["shares"], row["method"], row["batchnorm"])


def refuse_other_weights(
    row: Mapping[str, Any], point: Point, subject: UnivalSubject, checked: set[tuple[int, str]]
) -> None:
    """Raise StudyError where an expert's checkpoint is not the one of the row; each is looked at once."""
    for name, expert in point.experts.items():
        place = (row["seed"], expert.id)
        if place not in checked:
            source = subject.source(expert, row["seed"])
            here, there = digest(open_checkpoint(source.path, source.section), ROW_DIGEST), row["inputs"][name]
            if here != there:
                raise StudyError(f"{source.path} has the digest {here}, row {row['key']} {there}: run the study again")
            checked.add(place)


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
        "image": write_image(folder, example.media) if example.medium in ("image", "video") else None,
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


def write_image(folder: Path, media: torch.Tensor | None) -> str | None:
    """Write an image, or the frames of a video side by side, as PNG under a name of its content, once."""
    if media is None:
        return None
    frames = media.unsqueeze(1) if media.ndim == 3 else media  # 3 x frames x height x width
    strip = np.hstack([frame.permute(1, 2, 0).numpy() for frame in frames.unbind(1)])
    data = io.BytesIO()
    Image.fromarray(strip).save(data, "PNG")
    file = folder / "samples" / f"{hashlib.sha256(data.getvalue()).hexdigest()[:16]}.png"
    if not file.is_file():
        file.parent.mkdir(exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_bytes(data.getvalue())
        partial.replace(file)
    return file.name
