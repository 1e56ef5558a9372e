"""The command line of the model: answers to one image, video or audio, scores on a file of them, alignment."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merge.commands import aligning, one_of
from unival_core.commands.options import (
    PRECISIONS,
    RUNNING,
    Asking,
    Checkpoint,
    Loading,
    Overwrite,
    TaskName,
    Workers,
    running,
)
from unival_core.errors import UnivalError

if TYPE_CHECKING:
    from unival_core.data import TaskDataset
    from unival_core.data.task import Task
    from unival_core.evaluation import Evaluation
    from unival_core.model import UnivalModel
    from unival_core.vocabulary import Tokenizer

SHOWN = 5  # rows left out that are printed
of_file = partial(typer.Option, rich_help_panel="Columns and media of the file")
painted = partial(typer.Option, rich_help_panel="Images")


@dataclass(frozen=True)
class Painting:
    """Options that turn what image generation writes into images."""

    vqgan: Annotated[
        Path | None,
        painted(metavar="FILE", help="Image tokenizer that makes images of codes; without it, codes are printed."),
    ] = None
    vqgan_config: Annotated[
        Path | None, painted(metavar="FILE", help="Its published model.yaml, to compare with its tensors.")
    ] = None
    samples: Annotated[int | None, painted(min=1, help="Images to draw; default: 1.")] = None
    output: Annotated[
        Path | None,
        painted("--output", "-o", metavar="FILE", help="Where to save the sheet; of out.png images are out-1.png, ..."),
    ] = None
    clip: Annotated[
        Path | None,
        painted(metavar="DIR", help="Folder of a CLIP model, which puts the best images first (extra hf)."),
    ] = None
    seed: Annotated[int, painted(min=0, help="Of the draws.")] = 0

    def check(self, task: Task, *, overwrite: bool) -> None:
        """Raise UnivalError where options do not fit together, or an image is in the way."""
        from unival_core.drawing import image_paths

        given = [f"--{name}" for name in ("vqgan", "output", "clip", "samples") if getattr(self, name) is not None]
        if task.writes != "codes" and given:
            raise UnivalError(f"{given[0]} is for images, {task.name} writes {task.writes}")
        if given and not (self.vqgan and self.output):
            raise UnivalError(f"{given[0]} needs --vqgan FILE and --output FILE: images are made of codes by the first")
        for path in image_paths(self.output, self.samples or 1) if self.output else []:
            _check_free(path, overwrite)

    def paint(self, model: UnivalModel, tokenizer: Tokenizer, task: Task, text: str) -> list[str]:
        """Draw and save the images; return a line about each."""
        from unival_core.drawing import clip_scorer, draw_images, save_images
        from unival_core.image_codes import load_image_codes

        where = next(model.parameters()).device
        codec = load_image_codes(self.vqgan or "", config=self.vqgan_config, device=where)
        scorer = clip_scorer(self.clip, where) if self.clip else None
        count = self.samples or 1
        drawn = draw_images(model, tokenizer, codec, task, text, samples=count, seed=self.seed, scorer=scorer)
        paths = save_images(drawn, self.output or Path())
        fits = ["" if one.fit is None else f"  CLIP {one.fit:.4f}" for one in drawn]
        singles = paths[-count:]
        return [
            f"{path}  {one.score:.4f} nats a code{fit}" for path, one, fit in zip(singles, drawn, fits, strict=True)
        ]


@dataclass(frozen=True)
class Reading:
    """Options that say which rows are read, and how."""

    data: Annotated[list[Path], typer.Option(help="Tab-separated file in the published layout; may be repeated.")]
    selected_cols: Annotated[
        str | None, of_file(metavar="N,N,...", help="Columns of the file; default: the task's.")
    ] = None
    media: Annotated[
        Path | None, of_file(metavar="DIR", help="Folder of media given by path; default: the file's.")
    ] = None
    references: Annotated[
        Path | None, of_file(metavar="FILE", help="Captions in COCO's format; uniq_id is then an image's id.")
    ] = None

    @property
    def columns(self) -> list[int]:
        """Read the numbers of the columns. Raises UnivalError for what is no number."""
        try:
            return [int(number) for number in self.selected_cols.split(",")] if self.selected_cols else []
        except ValueError:
            raise UnivalError(
                f"--selected-cols {self.selected_cols}: give numbers joined by commas, as 0,4,2"
            ) from None

    def dataset(
        self, task: Task, loading: Loading, asking: Asking, checkpoint: Path
    ) -> tuple[UnivalModel, TaskDataset]:
        """Return the model and the rows as it reads them; what cannot be read is refused before weights are loaded."""
        from unival_core.data import ReferencedTable, TaskDataset, TsvTable

        table = TsvTable(self.data, task.columns, self.columns or task.selected_cols)
        if self.references:
            table = ReferencedTable(table, self.references)
        answers, missing = asking.allowed(task, checkpoint, loading.section)
        if missing:
            typer.echo(missing, err=True)
        model, tokenizer = loading.load(checkpoint)
        sizes: dict[str, Any] = {
            **loading.sizes(checkpoint, task),
            **{name: own for name in ("side", "frames") if (own := getattr(asking, name))},
        }
        rest: dict[str, Any] = {"answers": answers, "media_dir": self.media, "resample": asking.resample}
        return model, TaskDataset(task, table, tokenizer, model.config, **sizes, **rest)


def generate(
    checkpoint: Checkpoint,
    task: TaskName,
    asking: Asking,
    loading: Loading,
    painting: Painting,
    image: Annotated[Path | None, typer.Option(help="Image to look at.")] = None,
    video: Annotated[Path | None, typer.Option(help="Video to look at.")] = None,
    audio: Annotated[Path | None, typer.Option(help="Audio to listen to.")] = None,
    text: Annotated[str, typer.Option(help="Question, hypothesis, description, or box x0,y0,x1,y1.")] = "",
    draw: Annotated[Path | None, typer.Option(help="Where to save the image with the box.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Print what the model says about one image, video or audio, or draw images of a caption.

    \b
    unival-merge generate --checkpoint vqa.safetensors --task vqa --image dog.jpg --text "what colour is the dog"
    unival-merge generate --checkpoint drawing.pt --task image-generation --text "four" --vqgan codes.pt -o out.png
    """
    from unival_core.answering import ask, chosen_medium

    chosen = _task(task)
    source = chosen_medium(chosen, {"image": image, "video": video, "audio": audio}, text, "--{}")
    if draw and chosen.writes != "box":
        raise UnivalError(f"--draw needs a box, {task} has none")
    _check_free(draw, overwrite)
    painting.check(chosen, overwrite=overwrite)
    answers, told = asking.allowed(chosen, checkpoint, loading.section)
    model, tokenizer = loading.load(checkpoint, asking.side if chosen.writes == "codes" else None)
    if told and not answers and chosen.published.answers and model.config.has_published_text:
        typer.echo(told, err=True)  # the published experts were trained with a list
    chosen = asking.of(replace(chosen.sized_for(model.config), **loading.sizes(checkpoint, chosen)))
    chosen = replace(chosen, answers=chosen.answers or tuple(answers))
    _tell_unknown(chosen, tokenizer, text)
    if painting.vqgan:
        typer.echo("\n".join(painting.paint(model, tokenizer, chosen, text)))
        return
    answer = ask(model, tokenizer, chosen, source, text, asking.resample)
    if draw and source:
        _draw(answer, source, draw)
    if not isinstance(answer, str):  # a box with one decimal, codes as numbers
        answer = " ".join(f"{value:.1f}" if isinstance(value, float) else str(value) for value in answer)
    typer.echo(answer)


def evaluate(
    checkpoint: Checkpoint,
    task: TaskName,
    reading: Reading,
    asking: Asking,
    loading: Loading,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON lines to write the answers to.")] = None,
    submission: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON to write the answers to as servers take them.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows to stop after.")] = None,
    metrics: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Metrics joined by commas; default: the task's.")
    ] = None,
    batch_size: Annotated[int, running(min=1, help="Rows answered at once.")] = 16,
    amp: Annotated[str | None, one_of(PRECISIONS[1:], "--amp", "Mixed precision.", panel=RUNNING)] = None,
    workers: Workers = 2,
    overwrite: Overwrite = False,
) -> None:
    """Answer every row of a file, and print the scores with their 95 % intervals.

    \b
    unival-merge evaluate --checkpoint vqa.safetensors --task vqa --data vqa_val.tsv --answers trainval_ans2label.pkl
    """
    chosen = _task(task)
    _check_free(output, overwrite)
    _check_free(submission, overwrite)
    from unival_core.evaluation import evaluate as run
    from unival_core.evaluation import known_metrics
    from unival_core.submission import write_submission

    names = known_metrics(metrics.split(",") if metrics else chosen.metrics)
    model, dataset = reading.dataset(chosen, loading, asking, checkpoint)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "skipped ")  # told below
        result = run(
            model,
            dataset,
            options=asking.of(dataset.task).generation,
            metrics=names,
            batch_size=batch_size,
            limit=limit,
            workers=workers,
            amp=amp,
            output=output,
        )
    if submission:
        write_submission(submission, result.predictions, chosen)
    _print_scores(result, ", ".join(map(str, reading.data)))


def _aligner() -> Any:
    from unival_core.permutations import align_checkpoint

    return align_checkpoint


align = aligning(_aligner)  # as merge's, and it knows which units of UnIVAL move together


def _task(name: str) -> Task:
    from unival_core.tasks import find_task

    return find_task(name)


def _check_free(path: Path | None, overwrite: bool) -> None:
    if path and path.exists() and not overwrite:
        raise UnivalError(f"{path} exists: pass --overwrite")


def _tell_unknown(task: Task, tokenizer: Tokenizer, text: str) -> None:
    """Name on stderr the words of a text that the model does not know."""
    from unival_core.answering import unknown_words

    if lacking := unknown_words(task, tokenizer, text):
        typer.echo(f"the model does not know these words of --text, and reads <unk>: {', '.join(lacking)}", err=True)


def _draw(box: Sequence[float], source: Path, draw: Path) -> None:
    """Save the image with the box in it."""
    from PIL import ImageDraw

    from unival_core.media.image import load_image

    image = load_image(source)
    x0, y0, x1, y1 = box
    left, top, right, bottom = min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)
    width = max(1, min(image.size) // 150)
    ImageDraw.Draw(image).rectangle((left, top, right, bottom), outline=(255, 0, 0), width=width)
    try:
        image.save(draw)
    except (OSError, ValueError) as error:
        raise UnivalError(f"{draw}: {error}") from None


def _print_scores(result: Evaluation, data: str) -> None:
    """Print scores as papers print them; on stderr the rows that were left out."""
    from unival_core.metrics import METRICS, score_interval

    for place, reason in result.broken[:SHOWN]:
        typer.echo(f"left out: {place}: {reason}", err=True)
    if (more := len(result.broken) - SHOWN) > 0:
        typer.echo(f"left out: {more} more", err=True)
    typer.echo(f"{result.task} on {data}: {len(result.predictions)} rows in {result.seconds:.1f} s")
    for name, scores in result.scores.items():
        if scores.value != scores.value:  # NaN
            typer.echo(f"{name:14} {scores.note}")
            continue
        value, low, high = (METRICS[name].factor * one for one in (scores.value, *score_interval(scores)))
        note = f"  ({scores.note})" if scores.note else ""
        typer.echo(f"{name:14} {value:6.2f}  [{low:.2f}, {high:.2f}]  n {scores.n}{note}")
