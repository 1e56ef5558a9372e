"""Made rows of the real studies, with per-example scores: a stand-in for hours of evaluation."""

import hashlib
import itertools

import numpy as np

from experiments.grid.notes import write_notes
from experiments.grid.rows import Row, append_row, records
from experiments.unival.studies import STUDIES, Choice

METRIC = {"vqa": "VQA accuracy", "caption": "CIDEr-D", "grounding": "Acc@0.5", "entailment": "accuracy"}
N = 400
KIND = dict.fromkeys(("pretrained", "vanilla", "longer", "soup", "reward", "mixed-rewards"), 0.0) | {
    "joint": 0.2,
    "fusing": 0.02,
    "fusing-with-own": 0.02,
    "ratatouille": 0.04,
}
SHIFT = {"test": 0.0, "val": 0.0, "novel": 0.1, "lowquality": 0.2, "printed": 0.15, "knowledge": 0.1}


def kept(share):
    """A score far above the straight line: little is lost near either end."""
    return 0.25 + 0.6 * (1 - (1 - share) ** 3)


def straight(share):
    """A score on the straight line."""
    return 0.25 + 0.6 * share


def study_rows(study, *, curve=kept, kind=KIND, start=0.55, seeds=(0,), inputs=None, tasks=None, **choice):
    """Pairs of a row and its scores for every cell of a study; `curve` is the score by the share of a task's expert."""
    for seed, cell in itertools.product(seeds, STUDIES[study].cells(Choice(**choice))):
        point = cell.point
        if tasks and cell.task not in tasks:
            continue
        for metric in cell.metrics or (METRIC.get(cell.task, "BLEU@4"),):
            name = metric.rpartition(" ")[2] if cell.metrics and " " in metric else cell.task
            is_reference = point.kind in ("pretrained", "joint")
            value = start if is_reference else curve(point.shares.get(name, 0.0))
            value += kind.get(point.kind, 0.0) + 0.02 * (point.method == "ensemble") - SHIFT[cell.split]
            right = round(N * min(max(value, 0), 1))
            scores = (np.arange(N) * 7919 % N < right).astype(float)  # the same examples are hard for every point
            key = hashlib.sha256(f"{study} {point.id} {cell.task} {cell.split} {metric} {seed}".encode()).hexdigest()
            parameters = {name: list(own) if isinstance(own, tuple) else own for name, own in point.parameters.items()}
            shares = {name: share for name, share in point.shares.items() if share}
            row = Row(
                study=study,
                shares=shares,
                experts=point.kind,
                method=point.method,
                batchnorm=point.batchnorm,
                task=cell.task,
                split=cell.split,
                metric=metric,
                value=scores.mean(),
                lo=scores.mean() - 0.04,
                hi=scores.mean() + 0.04,
                n=N,
                seconds=1.5,
                seed=seed,
                versions={"torch": "2.13.0"},
                inputs={name: (inputs or {}).get(name, "ab" * 8) for name in shares},
                data="cd" * 8,
                key=key[:16],
                parameters=parameters,
            )
            yield row, scores


def with_losses(rows):
    """Rows of a loss beside those of scores."""
    about = {"metric": "negative log-likelihood", "unit": "nats", "higher_is_better": False}
    return rows + [
        {
            **row,
            **about,
            "value": 2 - row["value"],
            "lo": 2 - row["hi"],
            "hi": 2 - row["lo"],
            "key": f"{row['key']}-loss",
        }
        for row in rows
    ]


def in_memory(study, **made):
    """Rows of a study as `records` gives them, and their scores by key."""
    pairs = list(study_rows(study, **made))
    return records([vars(row) for row, _ in pairs]), {row.key: scores for row, scores in pairs}


def write_study(folder, study, **made):
    """The same as a study's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_notes(folder, study, STUDIES[study].notes)
    for row, scores in study_rows(study, **made):
        append_row(folder / "rows.jsonl", row, scores)
    return folder
