"""Models that are asked in Python, as `unival-merge generate` asks them.

>>> model = load("vqa.safetensors")  # doctest: +SKIP
>>> model.answer("vqa", image="a.png", text="which digit is red?")  # doctest: +SKIP
'four'
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from merge import open_checkpoint
from unival_core.checkpoint import bare, config_of, load_model
from unival_core.config import UnivalConfig
from unival_core.data.answers import allowed_answers, stored_answers
from unival_core.data.batch import collate
from unival_core.data.dataset import asked, media_reader
from unival_core.data.task import Task, texts_of
from unival_core.decoding import GenerationOptions
from unival_core.errors import UnivalError
from unival_core.evaluation import predict
from unival_core.model import UnivalModel
from unival_core.settings import Settings
from unival_core.tasks import TASKS, find_task
from unival_core.vocabulary import Tokenizer, load_tokenizer

Source = str | Path | bytes | Image.Image
"""A medium: the path or the bytes of a file, or an image of pillow."""


class AnsweringModel(UnivalModel):
    """A model that knows its tokenizer and so can be asked; in all else it is a `UnivalModel`.

    `answers` are the lists, by task, of those that it was trained to choose among, `settings` what a published file
    says of its training.
    """

    def __init__(self, config: UnivalConfig, tokenizer: Tokenizer) -> None:
        super().__init__(config)
        self.tokenizer = tokenizer.check(config)
        self.answers: dict[str, list[str]] = {}
        self.settings = Settings({}, {})

    @classmethod
    def of(cls, model: UnivalModel, tokenizer: Tokenizer) -> AnsweringModel:
        """Let a model be asked: both have the same tensors."""
        with bare():
            made = cls(model.config, tokenizer)
        made.load_state_dict(model.state_dict(), assign=True)
        made.tie()
        return made.train(model.training)

    def answer(
        self,
        task: str | Task,
        *,
        image: Source | None = None,
        video: Source | None = None,
        audio: Source | None = None,
        text: str = "",
        answers: Sequence[str] | None = None,
        options: GenerationOptions | None = None,
        resample: bool = False,
    ) -> Any:
        """Answer one question, as the task does it: in words, with a box x0, y0, x1, y1 in pixels, or in image codes.

        `task` is the name of one in `TASKS`, or a task. `text` is the question, hypothesis, description or caption that
        the task asks about; words that the model does not know are warned of. `answers` are the only ones allowed, by
        default those that the model was trained to choose among; [] allows any words. `options` take the place of the
        task's search; `resample` lets in audio of another rate. Raises UnivalError for what the task does not ask for,
        and for media that cannot be read.
        """
        task = find_task(task) if isinstance(task, str) else task
        source = chosen_medium(task, {"image": image, "video": video, "audio": audio}, text)
        if lacking := unknown_words(task, self.tokenizer, text):
            warnings.warn(f"the model does not know these words, and reads <unk>: {', '.join(lacking)}", stacklevel=2)
        allowed = self.answers.get(task.name, ()) if answers is None else answers
        sizes = self.settings.sizes(task.published.original, task.medium)
        task = replace(task.sized_for(self.config), answers=task.answers or tuple(allowed), **sizes)
        return ask(self, self.tokenizer, replace(task, generation=options or task.generation), source, text, resample)


def load(
    path: str | Path,
    *,
    config: str | Path | None = None,
    bpe: str | Path | None = None,
    section: str = "auto",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> AnsweringModel:
    """Load a model that can be asked: with its tokenizer, and the answers that it was trained to choose among.

    `config` is a JSON file of fields that replace what the checkpoint says, `bpe` the folder of the published tokenizer
    where it is not in the checkpoint's folder, `section` chooses among the weights of a training file; `device` and
    `dtype` are as of `load_model`.
    """
    file = open_checkpoint(path, section)
    model = AnsweringModel.of(*open_model(path, config=config, bpe=bpe, section=section, device=device, dtype=dtype))
    listed = {name: stored_answers(file, name) for name, task in TASKS.items() if task.takes_answers}
    model.answers = {name: found for name, found in listed.items() if found}
    model.settings = Settings.of(file)
    return model


def open_model(
    path: str | Path,
    *,
    config: str | Path | None = None,
    drawn: int | None = None,
    bpe: str | Path | None = None,
    section: str = "auto",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[UnivalModel, Tokenizer]:
    """Load a model and its tokenizer: that is found first, as files of it that are missing are soon told.

    `config` is a JSON file of fields that replace what the checkpoint says; `drawn` is the side, in pixels, of the
    images that the model shall draw, if not its own.
    """
    known = config_of(open_checkpoint(path, section), None if config is None else read_changes(Path(config)))
    known = replace(known, code_image_size=drawn) if drawn else known
    tokenizer = load_tokenizer(path, known, bpe=bpe, section=section)
    return load_model(path, known, section=section, device=device, dtype=dtype), tokenizer


def read_changes(path: Path) -> dict[str, Any]:
    """Read fields of a config from a JSON file. Raises UnivalError for what is no object."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UnivalError(f"{path}: {error}") from None
    if not isinstance(found, dict) or not found:
        raise UnivalError(f'{path}: give an object of fields of the config, as {{"bins": 1000}}')
    return found


def chosen_medium(task: Task, media: Mapping[str, Any], text: str, spelling: str = "{}=") -> Any:
    """Return the medium to look at or listen to, if the task wants one; UnivalError unless everything is given that it
    wants, and nothing else. `spelling` is how a caller gives what has a name."""
    given = [name for name, source in media.items() if source is not None]
    if given != ([task.medium] if task.medium else []):
        wanted = f"needs {spelling.format(task.medium)}" if task.medium else "looks at nothing"
        raise UnivalError(f"{task.name} {wanted}, got {' '.join(map(spelling.format, given)) or 'none'}")
    if bool(task.asks) != bool(text.strip()):
        said = spelling.format("text")
        raise UnivalError(f"{task.name} needs {said}" if task.asks else f"{task.name} takes no {said}")
    return media[task.medium] if task.medium else None


def unknown_words(task: Task, tokenizer: Tokenizer, text: str) -> list[str]:
    """List the words of a text that is asked about which the model does not know: it reads `<unk>`."""
    words = [word for part in texts_of(task.prompt(task.row_of(text))) for word in tokenizer.unknown(part)]
    return [word for word in words if word in text.lower()]


def ask(
    model: UnivalModel, tokenizer: Tokenizer, task: Task, source: Source | None, text: str, resample: bool = False
) -> Any:
    """Return the answer to one question of a task (`sized_for` the model), through the same steps as the rows of a
    file."""
    reader = media_reader(task, model.config, resample=resample)
    medium = reader.decode(source)[0] if reader and source is not None else None
    batch = collate([asked(task, task.row_of(text), medium, tokenizer)]).to(model.encoder.embed_tokens.weight.device)
    answers = allowed_answers(task.answers, tokenizer, model.config)
    return predict(model, batch, task, tokenizer, answers=answers)[0].answer
