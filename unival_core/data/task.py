"""What a task is: how a row is asked, answered and scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, NamedTuple

from unival_core.config import UnivalConfig
from unival_core.decoding import GenerationOptions
from unival_core.errors import UnivalError
from unival_core.inputs import MEDIA
from unival_core.metrics import METRICS

MAX_WORDS = 80  # of a question, hypothesis or description that goes into a prompt
OWN_FRAMES = 8  # of a video, in models with a vocabulary of their own
Row = Mapping[str, str]


class Box(NamedTuple):
    """A region, in pixels of the image as it is in the file: left, top, right, bottom."""

    x0: float
    y0: float
    x1: float
    y1: float


class Codes(NamedTuple):
    """An image as the codes of an image tokenizer, row by row."""

    values: tuple[int, ...]


Words = str | Box | Codes | tuple[str | Box, ...]
"""What encoder and decoder read and write: text, four bins, codes, or text and bins one after the other."""


def texts_of(words: Words) -> list[str]:
    """List the texts among what encoder and decoder read."""
    return [part for part in (words if isinstance(words, tuple) else (words,)) if isinstance(part, str)]


class InStage(NamedTuple):
    """A task's part in a stage of pretraining: its share of every batch, in any unit, and the split of its rows."""

    share: float = 1.0
    split: str = "pretrain"


class Family(NamedTuple):
    """A task's family, by name, and its place in it: the order in which folders and rows name the family's tasks."""

    name: str
    place: int


@dataclass(frozen=True)
class Published:
    """What the authors published of a task, as paths below their folders of checkpoints and of data.

    `data` are the data sets by their names, `original` is what the original calls the task. `average` says that their
    evaluations use the running average of the expert's weights. `files` are the data by split, of which `shifts` are
    shifted data, `answers` the lists of allowed answers by split ("" for every other), `references` the files whose
    captions count for a split instead of the rows' own. In the splits `by_image` the second column of a file takes the
    place of `uniq_id`; in the splits `unrepeated` the prompt is not repeated to the decoder. `generation` is how models
    with the published vocabulary search, where that is not how others do.
    """

    data: str = ""
    original: str = ""
    checkpoint: str = ""
    average: bool = False
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    shifts: tuple[str, ...] = ()
    answers: Mapping[str, str] = field(default_factory=dict[str, str])
    references: Mapping[str, str] = field(default_factory=dict[str, str])
    by_image: tuple[str, ...] = ()
    unrepeated: tuple[str, ...] = ()
    generation: GenerationOptions | None = None


def fully(row: Row) -> float:
    """Weigh every target alike."""
    return 1.0


@dataclass(frozen=True)
class Task:
    """A task: how a row, a mapping from column names to cells, is asked, answered and scored, and how it is learnt.

    `columns` are those that the functions use; the column `media` holds the image, video or audio. `layout` names
    every column of the task's files in their order, by default only these. `prompt` is what the encoder reads.
    `target` is what the decoder learns to write, with the generator of a training run, or None in evaluation, where it
    is the first of several; `targets` are all of these, where there can be several; `confidence` is its weight.
    `reference` is what each of `metrics` (names of METRICS, the one to quote first) compares with an answer, which for
    text is what `answer` makes of the decoded text. Functions
    raise UnivalError where a row is broken. `example` are the cells of a valid row, but for its media. `submits` are
    the names that servers which score submitted answers have for an example and for its answer.

    `answers` are the only ones allowed; () where the user may give a list or leave them free. With `rank_answers` all
    of them are scored, otherwise they are searched for as `generation` says. With `repeats_prompt` the decoder begins
    with the prompt. `asks` is the column that holds what a user asks, if anything. `complete` makes a training row
    of one that tells only half of it, from the row, a function that gives other rows, and a generator.

    `recipes` are the settings of finetuning by setup ("base", "pocket") that differ from the setup's own, by the names
    of `TrainOptions` and, under "loss", of `LossOptions`. `pretraining` says by setup in which stages the task takes
    part (`unival_core.training.recipes`). Tasks of one `family` start each other's experts in studies, and what is
    merged of them is evaluated on all of them; None for a task that stands alone.
    """

    name: str
    columns: tuple[str, ...]
    prompt: Callable[[Row], Words]
    target: Callable[[Row, Random | None], Words]
    reference: Callable[[Row], Any]
    metrics: tuple[str, ...]
    generation: GenerationOptions
    example: Row
    submits: tuple[str, str] = ("uniq_id", "answer")
    layout: tuple[str, ...] = ()
    medium: str | None = "image"
    side: int = 480  # pixels along the side of an image or frame
    frames: int = 0
    writes: str = "text"  # or "box" or "codes"
    answer: Callable[[str], str] = str.strip
    answers: tuple[str, ...] = ()
    rank_answers: bool = False
    repeats_prompt: bool = False
    targets: Callable[[Row], Sequence[Words]] | None = None
    confidence: Callable[[Row], float] = fully
    asks: str | None = None
    complete: Callable[[Row, Callable[[], Row], Random], Row] | None = None
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    pretraining: Mapping[str, Mapping[str, InStage]] = field(default_factory=dict[str, Mapping[str, InStage]])
    published: Published = Published()
    family: Family | None = None

    def __post_init__(self) -> None:
        if missing := [name for name in self.columns if name not in (self.layout or self.columns)]:
            raise UnivalError(f"task {self.name}: no column {missing[0]!r} in its layout, {', '.join(self.layout)}")
        if unknown := [name for name in self.metrics if name not in METRICS]:
            raise UnivalError(f"task {self.name}: no metric {unknown[0]!r}: choose from {', '.join(METRICS)}")
        if self.medium not in (None, *MEDIA) or self.writes not in ("text", "box", "codes"):
            raise UnivalError(f"task {self.name} cannot read {self.medium!r} or write {self.writes!r}")
        if self.medium and "media" not in self.columns:
            raise UnivalError(f"task {self.name}: name the column of its {self.medium}s 'media'")
        if lacking := [name for name in self.columns if name not in ("uniq_id", "media", *self.example)]:
            raise UnivalError(f"task {self.name}: its example row has no {lacking[0]!r}")

    @property
    def selected_cols(self) -> tuple[int, ...]:
        """Return the number, from 0, of each of `columns` in a file of the task's layout."""
        return tuple((self.layout or self.columns).index(name) for name in self.columns)

    @property
    def takes_answers(self) -> bool:
        """Tell whether rows have answers, and the list of those allowed is for the user to give."""
        return "answers" in self.columns and not self.answers

    def quoted(self, setup: str) -> str:
        """Return the metric to quote: the first; at pocket setup, whose rows keep them, the first with scores of
        examples."""
        means = [name for name in self.metrics if METRICS[name].is_mean] if setup == "pocket" else []
        return (means or self.metrics)[0]

    def learnable_texts(self) -> list[str]:
        """Return every text of the example row and of the answers: what a vocabulary has to hold to put the task."""
        words = (self.prompt(self.example), self.target(self.example, None), *self.answers)
        return [text for each in words for text in texts_of(each)]

    def row_of(self, text: str) -> Row:
        """Return the row that asks about a text, or that asks nothing in particular."""
        return dict.fromkeys(self.columns, "") | ({self.asks: text} if self.asks else {})

    def sized_for(self, config: UnivalConfig) -> Task:
        """Fit the sizes to a model.

        Models with the published vocabulary get the published sizes and search. Others look at images as large as those
        they write, and at 8 frames of a video. Where codes are written their number is that of the model.
        """
        task = replace(self, generation=self.published.generation or self.generation)
        if not config.has_published_text:
            task = replace(self, side=config.code_image_size, frames=min(self.frames, OWN_FRAMES))
        if self.writes == "codes":
            codes = config.code_side**2
            task = replace(task, generation=replace(task.generation, min_len=codes, max_len_b=codes))
        return task
