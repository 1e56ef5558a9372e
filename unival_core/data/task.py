"""What a task is: how a row is asked, answered and scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any, NamedTuple

from unival_core.config import CONFIGS, UnivalConfig
from unival_core.decoding import GenerationOptions
from unival_core.errors import UnivalError
from unival_core.inputs import MEDIA
from unival_core.metrics import METRICS

MAX_WORDS = 80  # of a question, hypothesis or description that goes into a prompt
OWN_FRAMES = 8  # of a film, in models with a vocabulary of their own
Row = Mapping[str, str]


class Box(NamedTuple):
    """A region, in pixels of the picture as it is in the file."""

    x0: float
    y0: float
    x1: float
    y1: float


class Codes(NamedTuple):
    """A picture as the codes of an image tokenizer, row by row."""

    values: tuple[int, ...]


Words = str | Box | Codes | tuple[str | Box, ...]
"""What encoder and decoder read and write: text, four bins, codes, or text and bins one after the other."""


def fully(row: Row) -> float:
    """Every target counts alike."""
    return 1.0


@dataclass(frozen=True)
class Task:
    """A task as functions of a row, which is a mapping from column names to cells.

    `columns` names what the published `selected_cols` pick from a file, in that order; the column `media` holds the
    picture, film or sound. `prompt` is what the encoder reads. `target` is what the decoder learns to write, with the
    generator of a training run, or None in evaluation, where it is the first of several; `confidence` is its weight.
    `reference` is what each of `metrics` (names of METRICS, the one to quote first) compares with an answer, which for
    text is what `answer` makes of the decoded text. Functions raise UnivalError where a row is broken.

    `answers` are the only ones allowed; () where the user may give a list or leave them free. With `rank_answers` all
    of them are scored, otherwise they are searched for as `generation` says. With `repeats_prompt` the decoder begins
    with the prompt. `asks` is the column that holds what a user asks, if anything. `complete` makes a training row
    of one that tells only half of it, from the row, a function that gives other rows, and a generator.
    """

    name: str
    columns: tuple[str, ...]
    selected_cols: tuple[int, ...]
    prompt: Callable[[Row], Words]
    target: Callable[[Row, Random | None], Words]
    reference: Callable[[Row], Any]
    metrics: tuple[str, ...]
    generation: GenerationOptions
    medium: str | None = "image"
    side: int = 480  # pixels along the side of a picture or frame
    frames: int = 0
    writes: str = "text"  # or "box" or "codes"
    answer: Callable[[str], str] = str.strip
    answers: tuple[str, ...] = ()
    rank_answers: bool = False
    repeats_prompt: bool = False
    confidence: Callable[[Row], float] = fully
    asks: str | None = None
    complete: Callable[[Row, Callable[[], Row], Random], Row] | None = None

    def __post_init__(self) -> None:
        if len(self.columns) != len(self.selected_cols):
            raise UnivalError(f"task {self.name}: {len(self.columns)} columns, {len(self.selected_cols)} selected_cols")
        if unknown := [name for name in self.metrics if name not in METRICS]:
            raise UnivalError(f"task {self.name}: no metric {unknown[0]!r}: choose from {', '.join(METRICS)}")
        if self.medium not in (None, *MEDIA) or self.writes not in ("text", "box", "codes"):
            raise UnivalError(f"task {self.name} cannot read {self.medium!r} or write {self.writes!r}")
        if self.medium and "media" not in self.columns:
            raise UnivalError(f"task {self.name}: name the column of its {self.medium}s 'media'")

    def sized_for(self, config: UnivalConfig) -> Task:
        """This task as a model reads and writes it.

        Models with the published vocabulary get the published sizes. Others look at pictures as large as those they
        write, and at 8 frames of a film. Where codes are written their number is that of the model.
        """
        task = self
        if config.vocabulary != CONFIGS["base"].vocabulary:
            task = replace(task, side=config.code_image_size, frames=min(self.frames, OWN_FRAMES))
        if self.writes == "codes":
            codes = config.code_side**2
            task = replace(task, generation=replace(task.generation, min_len=codes, max_len_b=codes))
        return task
