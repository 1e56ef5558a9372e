"""Every model on every task, and beside them what can be had without an image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from experiments.atomic import write_whole
from experiments.grid.rows import Row, append_row, content_key, read_rows
from experiments.grid.units import unit_in_rows
from experiments.pages.tables import pivot, to_markdown
from experiments.study.points import Expert
from experiments.unival.chance import most_common
from experiments.unival.pocket.data import rows_digest
from experiments.unival.pocket.experts import expert_file
from experiments.unival.pocket.pipeline import Pocket, file_digest, in_processes, open_model, timed
from experiments.unival.world.audit import audit
from unival_core import METRICS, TASKS, evaluate
from unival_core.metrics import Interval, Scores, score_interval, wilson_interval

STUDY = "pocket-experts"
GREEDY = 1  # hypotheses: beams of 5 take thrice the time
BLANK, MAJORITY, WORDS = "blank media", "majority answer", "naive Bayes on the text"


@dataclass(frozen=True)
class Measurement:
    """A model, named, on a task; `blank`: without images, videos and audio."""

    name: str
    file: Path
    task: str
    blank: bool = False


def cells(pocket: Pocket) -> list[Measurement]:
    """Return the pretrained model and every expert on the tasks of all experts; every expert blind on its own task."""
    tasks = pocket.plan.experts
    models = {"pretrained": pocket.pretrained} | {
        task: expert_file(pocket, Expert(task, task, "vanilla")) for task in tasks
    }
    seeing = [Measurement(name, file, task) for name, file in models.items() for task in tasks]
    return seeing + [Measurement(task, models[task], task, blank=True) for task in tasks]


def write_table(pocket: Pocket, split: str = "test", processes: int = 2, *, progress: bool = True) -> Path:
    """Evaluate what is missing in rows.jsonl and write table.md. Only finished rows count when it is stopped."""
    rows, table = pocket.folder / "rows.jsonl", pocket.folder / f"table-{split}.md"
    with pocket.alone():
        known = set() if not rows.exists() else set(read_rows(rows)["key"])
        jobs = [(pocket, cell, split) for cell in cells(pocket) if cell_key(pocket, cell, split) not in known]
        in_processes(measure, jobs, processes, "table", progress=progress)
        for task in pocket.plan.experts:
            for row in blind_rows(pocket, task, split):
                if row.key not in known:
                    append_row(rows, row)
    found = read_rows(rows)
    found = found[found["split"] == split]
    order = [*("pretrained", *pocket.plan.experts), MAJORITY, WORDS]
    place = [
        (order.index(next(iter(shares))), how) for shares, how in zip(found["shares"], found["experts"], strict=True)
    ]
    found = found.iloc[sorted(range(len(place)), key=lambda row: (place[row][1] == BLANK, place[row][0]))]
    write_whole(table, to_markdown(pivot(found, index=("point", "experts"))))
    return table


def cell_key(pocket: Pocket, cell: Measurement, split: str) -> str:
    """Return the content of a cell."""
    return content_key(
        study=STUDY,
        weights=file_digest(cell.file),
        data=rows_digest(pocket.world, cell.task, split),
        rows=pocket.plan.rows,
        metric=TASKS[cell.task].quoted("pocket"),
        beam=GREEDY,
        blank=cell.blank,
    )


def measure(pocket: Pocket, cell: Measurement, split: str) -> None:
    """Evaluate one cell and append its row."""
    with timed(pocket, f"evaluation {cell.name} on {cell.task}"):
        model, files = open_model(pocket, cell.file)
        data, metric = files.data(cell.task, split, blank=cell.blank), TASKS[cell.task].quoted("pocket")
        options = replace(data.task.generation, beam=GREEDY)
        result = evaluate(model, data, options=options, metrics=(metric,), limit=pocket.plan.rows, progress=False)
        scores = result.scores[metric]
        row = made_row(pocket, cell, split, scores, score_interval(scores), cell_key(pocket, cell, split))
        row = replace(row, seconds=result.seconds, inputs={cell.name: file_digest(cell.file)})
        append_row(pocket.folder / "rows.jsonl", row, result.scores[metric].per_example)


def made_row(pocket: Pocket, cell: Measurement, split: str, scores: Scores, interval: Interval, key: str) -> Row:
    """Return a result row, of no checkpoint so far."""
    metric = TASKS[cell.task].quoted("pocket")
    return Row(
        study=STUDY,
        shares={cell.name: 1.0},
        experts=BLANK if cell.blank else "vanilla",
        method="single",
        batchnorm="own",
        task=cell.task,
        split=split,
        metric=metric,
        value=scores.value,
        lo=interval.lo,
        hi=interval.hi,
        n=scores.n,
        seconds=0.0,
        seed=pocket.seed,
        versions={"torch": version("torch")},
        inputs={},
        data=rows_digest(pocket.world, cell.task, split),
        key=key,
        note=scores.note,
        unit=unit_in_rows(METRICS[metric].unit),
    )


def blind_rows(pocket: Pocket, task: str, split: str) -> list[Row]:
    """Say what the answer most frequent in training scores, and naive Bayes on the text where there is one.

    Boxes are guessed as in `experiments.unival.world.audit`.
    """
    data = open_model(pocket, pocket.pretrained)[1]
    asked, metric = data.data(task, split), TASKS[task].quoted("pocket")
    found: list[tuple[str, Scores, Interval]] = []
    if TASKS[task].writes == "text":
        rows = range(min(pocket.plan.rows, len(asked)))
        common = [most_common(TASKS[task], data.data(task, "train").table)] * len(rows)
        scores = METRICS[metric](common, [asked.task.reference(asked.table[row]) for row in rows])
        found.append((MAJORITY, scores, score_interval(scores)))
    if TASKS[task].asks:
        blind = audit(pocket.world, task, split)
        guesses = {WORDS: blind.text_only} | ({} if found else {MAJORITY: blind.majority})
        for name, value in guesses.items():
            scores = Scores(value, np.empty(0), blind.n)
            found.append((name, scores, wilson_interval(value * blind.n, blind.n)))
    rows = []
    for name, scores, interval in found:
        key = content_key(
            study=STUDY, name=name, data=rows_digest(pocket.world, task, split), rows=scores.n, metric=metric
        )
        rows.append(made_row(pocket, Measurement(name, pocket.pretrained, task), split, scores, interval, key))
    return rows
