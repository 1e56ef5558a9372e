"""The command line of the model: one picture, film or sound in, words or a box out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merge import MergeError
from unival_core.errors import UnivalError

if TYPE_CHECKING:
    from torch import Tensor

    from unival_core.config import UnivalConfig
    from unival_core.model import UnivalModel
    from unival_core.vocabulary import Tokenizer


@dataclass(frozen=True)
class Ask:
    """How a task is put to the model: what it looks at, what it is told, how its answer is searched."""

    media: str
    prompt: str  # {} stands for --text
    side: int  # pixels of a picture or frame
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    frames: int = 0
    answers: tuple[str, ...] = ()  # the only ones allowed
    repeats: bool = False  # the decoder begins with the question
    box: bool = False


_SENTENCE = {"beam": 5, "max_len_b": 22, "unnormalized": True, "no_repeat_ngram": 3}
_ANSWER = {"beam": 5, "unnormalized": True}

# The settings of the published evaluations (arXiv 2307.16184), one row a task.
ASKS = {
    "caption": Ask("image", " what does the image describe?", 480, _SENTENCE),
    "vqa": Ask("image", " {}?", 480, _ANSWER, repeats=True),
    "grounding": Ask(
        "image",
        ' which region does the text " {} " describe?',
        512,
        {"beam": 5, "min_len": 4, "max_len_b": 4},
        box=True,
    ),
    "entailment": Ask(
        "image", ' does the image describe " {} "?', 480, answers=(" yes", " no", " maybe"), repeats=True
    ),
    "video-caption": Ask("video", " what does the video describe?", 384, _SENTENCE, frames=16),
    "video-qa": Ask("video", " {}?", 384, _ANSWER, frames=8, repeats=True),
    "audio-caption": Ask("audio", " what does the video describe?", 0, _SENTENCE),  # sic: trained with these words
}
MAX_WORDS = 80  # of --text

LOOK: dict[str, Any] = {
    "help": "Run a UnIVAL model.",
    "no_args_is_help": True,
    "add_completion": False,
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
}
app = typer.Typer(**LOOK)


@app.command()
def generate(
    checkpoint: Annotated[Path, typer.Option(help="Model file or folder.")],
    task: Annotated[str, typer.Option(help=f"One of {', '.join(ASKS)}.")],
    image: Annotated[Path | None, typer.Option(help="Picture to look at.")] = None,
    video: Annotated[Path | None, typer.Option(help="Film to look at.")] = None,
    audio: Annotated[Path | None, typer.Option(help="Sound to listen to.")] = None,
    text: Annotated[str, typer.Option(help="Question, hypothesis, or description of a region.")] = "",
    bpe: Annotated[
        Path | None, typer.Option(help="Folder with the published encoder.json, vocab.bpe, dict.txt.")
    ] = None,
    section: Annotated[str, typer.Option(help="Part of a training file to use.")] = "auto",
    device: Annotated[str, typer.Option(help="Where to run: cpu, cuda, ...")] = "cpu",
    beam: Annotated[int | None, typer.Option(min=1, help="Hypotheses to search with; default: the task's.")] = None,
    side: Annotated[
        int | None, typer.Option(min=1, help="Pixels along the side of a picture; default: the task's.")
    ] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames to look at; default: the task's.")] = None,
    resample: Annotated[bool, typer.Option("--resample", help="Resample a sound of another rate.")] = False,
    draw: Annotated[Path | None, typer.Option(help="Where to save the picture with the box.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing --draw file.")] = False,
) -> None:
    """Print what the model says about one picture, film or sound.

    \b
    unival-merge generate --checkpoint vqa.pt --task vqa --image dog.jpg --text "what colour is the dog"
    """
    with told():
        ask = _checked(task, {"image": image, "video": video, "audio": audio}, text)
        if draw and (not ask.box or (draw.exists() and not overwrite)):
            raise UnivalError(f"{draw} exists: pass --overwrite" if ask.box else f"--draw needs a box, {task} has none")
        _check_device(device)
        from dataclasses import replace

        from unival_core.checkpoint import load_model
        from unival_core.vocabulary import load_tokenizer

        model = load_model(checkpoint, section=section, device=device)
        tokenizer = load_tokenizer(checkpoint, model.config, bpe=bpe, section=section)
        ask = replace(
            ask,
            side=side or _side(ask, model.config),
            frames=frames or ask.frames,
            options={**ask.options, **({"beam": beam} if beam is not None else {})},
        )
        source = next(path for path in (image, video, audio) if path)
        answer = _answer(model, tokenizer, ask, _read(ask, source, model.config, resample), text)
        typer.echo(_box(answer, tokenizer, source, draw) if ask.box else tokenizer.decode(answer).strip())


@contextmanager
def told() -> Iterator[None]:
    """Tells a user's mistake in one line on stderr and exits with code 2."""
    try:
        yield
    except (UnivalError, MergeError) as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from None


def _checked(task: str, media: dict[str, Path | None], text: str) -> Ask:
    if task not in ASKS:
        raise UnivalError(f"no task {task!r}: choose one of {', '.join(ASKS)}")
    ask = ASKS[task]
    given = [name for name, path in media.items() if path]
    if given != [ask.media]:
        raise UnivalError(f"{task} needs --{ask.media}, got {' '.join(f'--{name}' for name in given) or 'none'}")
    if ("{}" in ask.prompt) != bool(text.strip()):
        raise UnivalError(f"{task} needs --text" if "{}" in ask.prompt else f"{task} takes no --text")
    return ask


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UnivalError(f"--device {device}: {error}") from None


def _side(ask: Ask, config: UnivalConfig) -> int:
    """The published side; models with a vocabulary of their own read pictures as large as those they write."""
    from unival_core.config import CONFIGS

    return ask.side if config.vocabulary == CONFIGS["base"].vocabulary else config.code_image_size


def _read(ask: Ask, source: Path, config: UnivalConfig, resample: bool) -> dict[str, Tensor]:
    """One medium as a batch of one: the field of `Inputs` it fills, and its values."""
    if ask.media == "image":
        from unival_core.media.image import image_to_tensor, load_image

        return {"images": image_to_tensor(load_image(source), ask.side)[None]}
    if ask.media == "video":
        from unival_core.media.video import choose_frames, load_video, video_to_tensor

        film = load_video(source, lambda length: choose_frames(length, ask.frames))
        return {"videos": video_to_tensor(film, ask.side)[None]}
    from unival_core.media.audio import load_audio, prepare_audio

    if config.audio is None:
        raise UnivalError(f"the model reads {', '.join(config.encoders)}, not audio: load one with its encoder")
    return {"audios": prepare_audio(*load_audio(source), config.audio, resampling=resample)[None]}


def _answer(model: UnivalModel, tokenizer: Tokenizer, ask: Ask, medium: dict[str, Tensor], text: str) -> list[int]:
    """Medium and words to tokens, through the model, and back: the ids of its best answer."""
    import torch

    from unival_core.generate import GenerationOptions, IdRange, generate, score_candidates
    from unival_core.inputs import Inputs
    from unival_core.text import clean_question

    question = tokenizer.encode(ask.prompt.format(clean_question(text, MAX_WORDS).rstrip("?")))
    device = model.encoder.embed_tokens.weight.device
    inputs = Inputs(torch.tensor([[tokenizer.bos, *question, tokenizer.eos]]), **medium).to(device)
    prefix = [question] if ask.repeats else None
    if ask.answers:
        answers = [tokenizer.encode(answer) for answer in ask.answers]
        return answers[int(score_candidates(model, inputs, answers, prefix=prefix).argmax())]
    constraint = IdRange(tokenizer.bin_offset, tokenizer.size) if ask.box else None
    options = GenerationOptions(**ask.options)
    return generate(model, inputs, options, constraint=constraint, prefix=prefix)[0][0].answer


def _box(answer: list[int], tokenizer: Tokenizer, source: Path, draw: Path | None) -> str:
    """The box in pixels of the picture, drawn into a copy of it if wanted."""
    from PIL import ImageDraw

    from unival_core.media.image import load_image

    picture = load_image(source)
    x0, y0, x1, y1 = tokenizer.ids_to_box(answer, picture.size)
    if draw:
        left, top, right, bottom = min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)
        width = max(1, min(picture.size) // 150)
        ImageDraw.Draw(picture).rectangle((left, top, right, bottom), outline=(255, 0, 0), width=width)
        try:
            picture.save(draw)
        except (OSError, ValueError) as error:
            raise UnivalError(f"{draw}: {error}") from None
    return f"{x0:.1f} {y0:.1f} {x1:.1f} {y1:.1f}"


def main() -> None:
    """Run the command line by itself."""
    program = typer.Typer(**LOOK)
    program.add_typer(app)  # as `unival-merge` does: a lone command keeps its name
    program()
