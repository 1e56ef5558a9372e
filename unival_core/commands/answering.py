"""The command line of the model: answers to one image, video or audio, scores on a file of them, alignment."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unival_core.errors import UnivalError

if TYPE_CHECKING:
    from unival_core.data.task import Task
    from unival_core.evaluation import Evaluation
    from unival_core.model import UnivalModel
    from unival_core.vocabulary import Tokenizer

SHOWN = 5  # rows left out that are printed

# Named after their files: reading the table itself would import torch before --help could answer.
TASK_NAMES = sorted(file.stem.replace("_", "-") for file in Path(__file__).parents[1].glob("tasks/[a-z]*.py"))
TaskName = Annotated[str, typer.Option(help=f"One of {', '.join(TASK_NAMES)}.")]
Checkpoint = Annotated[Path, typer.Option(help="Model file or folder.")]
Bpe = Annotated[Path | None, typer.Option(help="Folder with the published encoder.json, vocab.bpe, dict.txt.")]
Section = Annotated[str, typer.Option(help="Part of a training file to use.")]
Device = Annotated[str, typer.Option(help="Where to run: cpu, cuda, ...")]
BeamWidth = Annotated[int | None, typer.Option(min=1, help="Hypotheses to search with; default: the task's.")]
Side = Annotated[int | None, typer.Option(min=1, help="Pixels along the side of an image; default: the task's.")]
Frames = Annotated[int | None, typer.Option(min=1, help="Frames to look at; default: the task's.")]
Resample = Annotated[bool, typer.Option("--resample", help="Resample audio of another rate.")]


def generate(
    checkpoint: Checkpoint,
    task: TaskName,
    image: Annotated[Path | None, typer.Option(help="Image to look at.")] = None,
    video: Annotated[Path | None, typer.Option(help="Video to look at.")] = None,
    audio: Annotated[Path | None, typer.Option(help="Audio to listen to.")] = None,
    text: Annotated[str, typer.Option(help="Question, hypothesis, description, or box x0,y0,x1,y1.")] = "",
    bpe: Bpe = None,
    section: Section = "auto",
    device: Device = "cpu",
    beam: BeamWidth = None,
    side: Side = None,
    frames: Frames = None,
    resample: Resample = False,
    draw: Annotated[Path | None, typer.Option(help="Where to save the image with the box.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing --draw file.")] = False,
) -> None:
    """Print what the model says about one image, video or audio.

    \b
    unival-merge generate --checkpoint vqa.pt --task vqa --image dog.jpg --text "what colour is the dog"
    """
    chosen = _task(task)
    source = _source(chosen, {"image": image, "video": video, "audio": audio}, text)
    if draw and chosen.writes != "box":
        raise UnivalError(f"--draw needs a box, {task} has none")
    _check_free(draw, overwrite)
    model, tokenizer = _load(checkpoint, bpe, section, device)
    chosen = chosen.sized_for(model.config)
    chosen = _searched(replace(chosen, side=side or chosen.side, frames=frames or chosen.frames), beam)
    answer = _answer(model, tokenizer, chosen, source, text, resample)
    if draw and source:
        _draw(answer, source, draw)
    if not isinstance(answer, str):  # a box with one decimal, codes as numbers
        answer = " ".join(f"{value:.1f}" if isinstance(value, float) else str(value) for value in answer)
    typer.echo(answer)


def evaluate(
    checkpoint: Checkpoint,
    task: TaskName,
    data: Annotated[list[Path], typer.Option(help="Tab-separated file in the published layout; may be repeated.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON lines to write the answers to.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows to stop after.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows answered at once.")] = 16,
    selected_cols: Annotated[
        str | None, typer.Option(help="Columns of the file, as 0,4,2; default: the task's.")
    ] = None,
    media: Annotated[Path | None, typer.Option(help="Folder of media given by path; default: the file's.")] = None,
    answers: Annotated[
        Path | None, typer.Option(help="The answers allowed: .txt, .json, .pkl, or a training file .tsv.")
    ] = None,
    metrics: Annotated[str | None, typer.Option(help="Names joined by commas; default: the task's.")] = None,
    bpe: Bpe = None,
    section: Section = "auto",
    device: Device = "cpu",
    amp: Annotated[str | None, typer.Option(help="Mixed precision: bf16 or fp16.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Threads that read and decode.")] = 2,
    beam: BeamWidth = None,
    side: Side = None,
    frames: Frames = None,
    resample: Resample = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing --output file.")] = False,
) -> None:
    """Answer every row of a file, and print the scores with their 95 % intervals.

    \b
    unival-merge evaluate --checkpoint vqa.pt --task vqa --data vqa_val.tsv --answers trainval_ans2label.pkl
    """
    chosen = _task(task)
    _check_free(output, overwrite)
    from unival_core.data.answers import load_answers
    from unival_core.data.dataset import TaskDataset
    from unival_core.data.table import TsvTable
    from unival_core.evaluation import evaluate as run
    from unival_core.evaluation import known_metrics

    names = known_metrics(metrics.split(",") if metrics else chosen.metrics)
    table = TsvTable(data, chosen.columns, _numbers(selected_cols) or chosen.selected_cols)
    allowed = load_answers(answers, chosen) if answers else ()
    model, tokenizer = _load(checkpoint, bpe, section, device)
    dataset = TaskDataset(
        chosen,
        table,
        tokenizer,
        model.config,
        answers=allowed,
        media_dir=media,
        side=side,
        frames=frames,
        resample=resample,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "skipped ")  # told below
        result = run(
            model,
            dataset,
            options=_searched(dataset.task, beam).generation,
            metrics=names,
            batch_size=batch_size,
            limit=limit,
            workers=workers,
            amp=amp,
            output=output,
        )
    _print_scores(result, ", ".join(map(str, data)))


def align(
    first: Annotated[Path, typer.Argument(help="Model whose order of units is taken.")],
    second: Annotated[Path, typer.Argument(help="Model to put into that order.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="File or folder to write.")],
    groups: Annotated[
        Path | None, typer.Option(help="JSON {group: {tensor: axis}} of which axes move together, for other models.")
    ] = None,
    section: Section = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
) -> None:
    """Write SECOND with its heads, channels and hidden units in the order of FIRST's, so that the two can be averaged.

    For models of one architecture trained apart (Git Re-Basin, arXiv 2209.04836); those finetuned from one ancestor are
    aligned already. Needs SciPy (the extra `align`), and to know which units move together: UnIVAL's are known, those
    of a plain chain of layers are read off the shapes, and any other model's are given by --groups.

    \b
    unival-merge align a.pt b.pt -o b_aligned.pt
    unival-merge align a.pt b.pt --groups groups.json -o b_by_groups.pt
    """
    _check_free(output, overwrite)
    from tqdm import tqdm

    from unival_core.permutations import align_checkpoint

    with tqdm(desc="align", unit=" groups", disable=None) as bar:
        done = align_checkpoint(
            first,
            second,
            output,
            groups=groups,
            section=section,
            overwrite=overwrite,
            progress=lambda _: bar.update(),
        )
    typer.echo(
        f"{output}: {done.moved:,} of {done.units:,} units of {second} moved; cosine with {first} "
        f"{done.before:.4f} before, {done.after:.4f} now"
    )


def _task(name: str) -> Task:
    from unival_core.tasks import find_task

    return find_task(name)


def _source(task: Task, media: dict[str, Path | None], text: str) -> Path | None:
    """Return the file to look at or listen to, if the task wants one; checks that everything is given that it wants."""
    given = [name for name, path in media.items() if path]
    if given != ([task.medium] if task.medium else []):
        wanted = f"needs --{task.medium}" if task.medium else "looks at nothing"
        raise UnivalError(f"{task.name} {wanted}, got {' '.join(f'--{name}' for name in given) or 'none'}")
    if bool(task.asks) != bool(text.strip()):
        raise UnivalError(f"{task.name} needs --text" if task.asks else f"{task.name} takes no --text")
    return media[task.medium] if task.medium else None


def _check_free(path: Path | None, overwrite: bool) -> None:
    if path and path.exists() and not overwrite:
        raise UnivalError(f"{path} exists: pass --overwrite")


def _load(checkpoint: Path, bpe: Path | None, section: str, device: str) -> tuple[UnivalModel, Tokenizer]:
    import torch

    from unival_core.checkpoint import load_model
    from unival_core.vocabulary import load_tokenizer

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UnivalError(f"--device {device}: {error}") from None
    model = load_model(checkpoint, section=section, device=device)
    return model, load_tokenizer(checkpoint, model.config, bpe=bpe, section=section)


def _searched(task: Task, beam: int | None) -> Task:
    return task if beam is None else replace(task, generation=replace(task.generation, beam=beam))


def _numbers(text: str | None) -> list[int]:
    try:
        return [int(number) for number in text.split(",")] if text else []
    except ValueError:
        raise UnivalError(f"--selected-cols {text}: give numbers joined by commas, as 0,4,2") from None


def _answer(
    model: UnivalModel, tokenizer: Tokenizer, task: Task, source: Path | None, text: str, resample: bool
) -> Any:
    """Return the answer to one question, through the same steps as the rows of a file."""
    from unival_core.data.answers import allowed_answers
    from unival_core.data.batch import collate
    from unival_core.data.dataset import asked, media_reader
    from unival_core.data.task import texts_of
    from unival_core.evaluation import predict

    reader = media_reader(task, model.config, resample=resample)
    medium = reader.decode(source)[0] if reader and source else None
    row = dict.fromkeys(task.columns, "") | ({task.asks: text} if task.asks else {})
    lacking = [word for part in texts_of(task.prompt(row)) for word in tokenizer.unknown(part)]
    if lacking := [word for word in lacking if word in text.lower()]:
        typer.echo(f"the model does not know these words of --text, and reads <unk>: {', '.join(lacking)}", err=True)
    batch = collate([asked(task, row, medium, tokenizer)]).to(model.encoder.embed_tokens.weight.device)
    answers = allowed_answers(task.answers, tokenizer, model.config)
    return predict(model, batch, task, tokenizer, answers=answers)[0].answer


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
    """Print scores times 100, as papers print them; on stderr the rows that were left out."""
    from unival_core.metrics import score_interval

    for place, reason in result.broken[:SHOWN]:
        typer.echo(f"left out: {place}: {reason}", err=True)
    if (more := len(result.broken) - SHOWN) > 0:
        typer.echo(f"left out: {more} more", err=True)
    typer.echo(f"{result.task} on {data}: {len(result.predictions)} rows in {result.seconds:.1f} s")
    for name, scores in result.scores.items():
        if scores.value != scores.value:  # NaN
            typer.echo(f"{name:14} {scores.note}")
            continue
        low, high = score_interval(scores)
        note = f"  ({scores.note})" if scores.note else ""
        typer.echo(f"{name:14} {100 * scores.value:6.2f}  [{100 * low:.2f}, {100 * high:.2f}]  n {scores.n}{note}")
