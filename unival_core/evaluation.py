"""A model on the rows of a task: answers first, then their scores."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from tqdm import tqdm

from unival_core.data.answers import Answers
from unival_core.data.batch import Batch
from unival_core.data.dataset import Broken, TaskDataset
from unival_core.data.loading import evaluation_batches
from unival_core.data.task import Task
from unival_core.decoding import GenerationOptions, IdRange
from unival_core.ensemble import Ensemble
from unival_core.errors import UnivalError
from unival_core.generation import NextToken, generate
from unival_core.likelihood import negative_log_likelihood, score_candidates
from unival_core.metrics import METRICS, Scores
from unival_core.model import UnivalModel
from unival_core.text import Trie
from unival_core.vocabulary import Tokenizer

AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}
NO_BOX = (float("nan"),) * 4


@dataclass(frozen=True)
class Prediction:
    """What a model answered to a row: a text, a box x0, y0, x1, y1 in pixels, or image codes; its log-probability
    (ranked as the search ranks); and the reference it is compared with.

    `confidence` is the probability of the whole answer, among those allowed; `loss` the negative log-likelihood of the
    references (`negative_log_likelihood`), where it was asked for.
    """

    name: str
    place: str
    answer: Any
    score: float
    reference: Any
    confidence: float
    loss: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """Scores by metric, what they are of (in the order of the file), the rows left out, and the time it took."""

    task: str
    scores: dict[str, Scores]
    predictions: list[Prediction]
    broken: list[Broken]
    seconds: float


def evaluate(
    model: UnivalModel | Ensemble,
    dataset: TaskDataset,
    *,
    options: GenerationOptions | None = None,
    metrics: Sequence[str] = (),
    batch_size: int = 64,
    device: torch.device | str | None = None,
    limit: int | None = None,
    workers: int = 0,
    amp: str | None = None,
    output: Path | None = None,
    progress: bool = True,
) -> Evaluation:
    """Answer every row of a dataset (or the first `limit`) and score the answers.

    `options` and `metrics` default to the task's; `amp` is "bf16" or "fp16" for mixed precision. The model runs, and
    stays, on `device` (default: where it is), in evaluation mode, and is put back into the mode it was in. With
    `output`, the predictions are written there as JSON lines before they are scored, all or nothing. Raises UnivalError
    where no row is valid.
    """
    started = time.perf_counter()
    task, asked = dataset.task, cast(NextToken, model)
    metrics = known_metrics(metrics or task.metrics)
    if device is not None:
        model.to(device)
    where = next(model.parameters()).device
    if amp is not None and amp not in AMP:
        raise UnivalError(f"no precision {amp!r}: choose {' or '.join(AMP)}")
    precision = contextlib.nullcontext() if amp is None else torch.autocast(where.type, AMP[amp])
    found: dict[int, Prediction] = {}
    total = len(dataset) if limit is None else min(limit, len(dataset))
    modes = [(module, module.training) for module in model.modules()]  # frozen parts may differ from the model's own
    model.eval()
    try:
        with (
            precision,
            torch.no_grad(),
            tqdm(desc=task.name, total=total, unit="example", disable=None if progress else True) as bar,
        ):
            for rows, batch in evaluation_batches(dataset, batch_size, limit=limit, workers=workers):
                batch, limits = batch.to(where), dataset.answers
                cache = asked.start(asked.encode(batch.inputs), batch.code_rows)
                said = predict(model, batch, task, dataset.tokenizer, answers=limits, options=options, cache=cache)
                if any(METRICS[name].of == "loss" for name in metrics):
                    losses = negative_log_likelihood(model, batch, limits, cache)
                    said = [replace(one, loss=loss) for one, loss in zip(said, losses, strict=True)]
                found.update(zip(rows, said, strict=True))
                bar.update(len(rows))
    finally:
        for module, mode in modes:
            module.training = mode
    predictions = [found[row] for row in sorted(found)]
    if not predictions:
        raise UnivalError(f"{dataset.table.paths[0]}: no row of {total} could be evaluated")
    if output is not None:
        write_predictions(output, predictions)
    scores = score(predictions, metrics)
    return Evaluation(task.name, scores, predictions, dataset.broken, time.perf_counter() - started)


def predict(
    model: UnivalModel | Ensemble,
    batch: Batch,
    task: Task,
    tokenizer: Tokenizer,
    *,
    answers: Answers | None = None,
    options: GenerationOptions | None = None,
    cache: Any = None,
) -> list[Prediction]:
    """Return the answers to a batch of one task (`sized_for` the model), which lies on the model's device.

    `cache` is what `model.start` returned of the batch, where that is known; it stays as it is.
    """
    prefix = batch.prefix if task.repeats_prompt else None
    if answers is not None and task.rank_answers:
        ranks, places = score_candidates(model, batch.inputs, answers.ids, prefix=prefix, cache=cache).max(dim=1)
        said = [(answers.ids[place], rank, rank) for place, rank in zip(places.tolist(), ranks.tolist(), strict=True)]
    else:
        found = generate(
            model,
            batch.inputs,
            options or task.generation,
            constraint=constraint_of(task, tokenizer, answers),
            prefix=prefix,
            code_rows=batch.code_rows,
            cache=cache,
        )
        best = [sentences[0] for sentences in found]
        said = [(one.answer, one.score, sum(one.token_scores[one.prefix_length :])) for one in best]
    return [
        Prediction(
            name=e.name,
            place=e.place,
            answer=answer_of(ids, task, tokenizer, answers, e.size),
            score=rank,
            reference=e.reference,
            confidence=math.exp(min(whole, 0.0)),
        )
        for (ids, rank, whole), e in zip(said, batch.examples, strict=True)
    ]


def constraint_of(task: Task, tokenizer: Tokenizer, answers: Answers | None) -> Trie | IdRange | None:
    """Say what a task's answers consist of: one of a list, bins, image codes, or None for any words."""
    if answers is not None:
        return answers.trie
    code, box = tokenizer.code_offset, tokenizer.bin_offset
    return {"box": IdRange(box, tokenizer.size), "codes": IdRange(code, box, "counted")}.get(task.writes)


def answer_of(
    ids: Sequence[int], task: Task, tokenizer: Tokenizer, answers: Answers | None, size: tuple[int, int] | None
) -> Any:
    """Say what ids say: text, a box in pixels of an image of `size` (NaN where they are not four bins), or image
    codes."""
    if answers is not None:
        return answers.text(ids)
    if task.writes == "codes":
        return tokenizer.ids_to_codes(ids)
    if task.writes == "box" and size is not None:
        return tokenizer.ids_to_box(ids, size) if len(ids) == 4 else NO_BOX
    return task.answer(tokenizer.decode(ids))


def known_metrics(names: Sequence[str]) -> Sequence[str]:
    """Return the names, if all of them are metrics."""
    if unknown := [name for name in names if name not in METRICS]:
        raise UnivalError(f"no metric {unknown[0]!r}: choose from {', '.join(METRICS)}")
    return names


def score(predictions: Sequence[Prediction], metrics: Sequence[str]) -> dict[str, Scores]:
    """Return the scores by the names of metrics."""
    references = [p.reference for p in predictions]
    return {name: METRICS[name]([getattr(p, METRICS[name].of) for p in predictions], references) for name in metrics}


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """Write one JSON object a line, all or nothing. Raises UnivalError where the file cannot be written."""
    said = ({name: value for name, value in asdict(one).items() if value is not None} for one in predictions)
    write_whole(path, (json.dumps(one, ensure_ascii=False) + "\n" for one in said))


def write_whole(path: Path, texts: Iterable[str]) -> None:
    """Write a file of texts that is on the disk when it takes its name, or nothing. Raises UnivalError where it cannot
    be written."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(texts)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UnivalError(f"{path}: {error.strerror}") from None
