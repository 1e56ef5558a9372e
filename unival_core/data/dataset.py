"""Rows of a table as examples of a task."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import NamedTuple

from unival_core.config import UnivalConfig
from unival_core.data.answers import STORED, allowed_answers
from unival_core.data.batch import Example
from unival_core.data.media_cache import MediaCache, Medium
from unival_core.data.reader import MediaReader
from unival_core.data.table import TsvTable
from unival_core.data.task import Box, Codes, Row, Task, Words
from unival_core.errors import UnivalError
from unival_core.vocabulary import Tokenizer

MAX_BROKEN = 100


class Broken(NamedTuple):
    """A row that cannot be used: its file:line, and why."""

    place: str
    reason: str


class TaskDataset:
    """The examples of a table, for training or for evaluation.

    `media_dir` is the folder of media given by path (default: that of the file); `side` and `frames` replace the task's
    sizes of images and videos; `resample` lets audio of any rate in. `answers` limits the answers of a task that has
    no list of its own; a training row whose answer is not in it counts as broken. In training, `seed` and the number of
    the draw decide all that is random, so that workers and processes do not matter. With a `cache` media are decoded
    once, and whole examples are kept in evaluation.

    A broken row raises UnivalError from `[]`; `get` and `draw` skip it with a warning, name it in `broken`, and raise
    UnivalError when there are more than `max_broken`.
    """

    def __init__(
        self,
        task: Task,
        table: TsvTable,
        tokenizer: Tokenizer,
        config: UnivalConfig,
        *,
        training: bool = False,
        seed: int = 0,
        answers: Sequence[str] = (),
        media_dir: str | Path | None = None,
        side: int | None = None,
        frames: int | None = None,
        resample: bool = False,
        cache: MediaCache | None = None,
        max_broken: int = MAX_BROKEN,
    ) -> None:
        task = task.sized_for(config)
        self.task = replace(task, side=side or task.side, frames=frames or task.frames)
        self.table, self.tokenizer, self.config = table, tokenizer.check(config), config
        self.training, self.seed, self.max_broken = training, seed, max_broken
        self.media_dir = None if media_dir is None else Path(media_dir)
        self.answers = allowed_answers(task.answers or answers, tokenizer, config)
        self.reader = media_reader(self.task, config, resample=resample, cache=cache)
        self._broken: dict[int, Broken] = {}
        self._kept: dict[int, Example] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.table)

    @property
    def notes(self) -> dict[str, str]:
        """Return what a file of weights trained on this has to say in its metadata: the answers that were allowed, if
        the task has no list of its own (`stored_answers`)."""
        if self.task.answers or (self.answers is None and not self.task.takes_answers):
            return {}
        return {f"{STORED}{self.task.name}": json.dumps(self.answers.texts if self.answers else [])}

    def __getitem__(self, row: int) -> Example:
        return self.read(row)

    @property
    def broken(self) -> list[Broken]:
        """Return the broken rows met so far, in the order of the table."""
        return [self._broken[row] for row in sorted(self._broken)]

    def read(self, row: int, number: int = 0) -> Example:
        """Return the example of a row; in training the one of draw `number`. UnivalError names the row if it is
        broken."""
        if row in self._kept:
            return self._kept[row]
        place = self.table.place(row)
        try:
            generator = Random(f"{self.seed} {self.task.name} {row} {number}") if self.training else None
            cells: Row = self.table[row]
            if generator is not None and self.task.complete is not None:
                cells = self.task.complete(cells, lambda: self.table[generator.randrange(len(self))], generator)
            medium, is_kept = None, False
            if self.reader is not None:
                medium, is_kept = self.reader(cells["media"], self.media_dir or self.table.folder(row), generator)
            example = asked(self.task, cells, medium, self.tokenizer, place)
            example = answered(self.task, example, cells, self.tokenizer, generator)
            check_lengths(example, self.config)
        except UnivalError as error:
            raise UnivalError(f"{place}: {error}") from None
        example = self._limited(example, cells)
        if is_kept and not self.training:
            self._kept[row] = example
        return example

    def get(self, row: int, number: int = 0) -> Example | None:
        """Read like `read`, or return None where the row is broken."""
        try:
            return self.read(row, number)
        except UnivalError as error:
            self._note(row, str(error).removeprefix(f"{self.table.place(row)}: "))
            return None

    def draw(self, row: int, number: int) -> Example:
        """Return the example of draw `number` of a training run; in the place of a broken row comes the next valid
        one."""
        for step in range(len(self)):
            if (example := self.get((row + step) % len(self), number)) is not None:
                return example
        raise UnivalError(f"{self.table.paths[0]}: every row is broken, the first: {self.broken[0].reason}")

    def length(self, row: int) -> int:
        """Count the tokens of the prompt, 0 where the row is broken: what evaluation sorts by. Decodes no medium."""
        if row in self._kept:
            return len(self._kept[row].source)
        try:
            return len(to_ids(self.task.prompt(self.table[row]), self.tokenizer, (1, 1)))
        except UnivalError:
            return 0

    def _limited(self, example: Example, cells: Row) -> Example:
        """Add in training the allowed answers, of which the target has to be one."""
        if self.answers is None or not self.training:
            return example
        target = self.task.target(cells, None)
        if target not in self.answers:
            raise UnivalError(f"{example.place}: {target!r} is none of the {len(self.answers)} allowed answers")
        return replace(example, answers=self.answers)

    def _note(self, row: int, reason: str) -> None:
        with self._lock:
            if row in self._broken:
                return
            broken = self._broken[row] = Broken(self.table.place(row), reason)
        if len(self._broken) > self.max_broken:
            raise UnivalError(
                f"{len(self._broken)} broken rows, at most {self.max_broken} are skipped; {': '.join(broken)}"
            )
        warnings.warn(f"skipped {': '.join(broken)}", stacklevel=3)


def media_reader(
    task: Task, config: UnivalConfig, *, resample: bool = False, cache: MediaCache | None = None
) -> MediaReader | None:
    """Make what reads the media of a task, None if it has none; UnivalError if the model cannot see or hear them."""
    if task.medium is None:
        return None
    if task.medium not in config.encoders:
        raise UnivalError(f"the model reads {', '.join(config.encoders)}, not {task.medium}: load one with its encoder")
    return MediaReader(task.medium, task.side, task.frames, config.audio, resample, cache)


def asked(task: Task, row: Row, medium: Medium | None, tokenizer: Tokenizer, place: str = "") -> Example:
    """Return the half of an example that the model is given."""
    size = None if medium is None else medium.size
    source = to_ids(task.prompt(row), tokenizer, size)
    return Example(
        task=task.name,
        name=row.get("uniq_id", ""),
        place=place,
        source=source,
        target=[],
        prefix=source if task.repeats_prompt else [],
        medium=task.medium,
        media=None if medium is None else medium.values,
        size=size,
        writes_image=task.writes == "codes",
    )


def answered(task: Task, example: Example, row: Row, tokenizer: Tokenizer, generator: Random | None) -> Example:
    """Add the half of an example that the model has to find out."""
    further = [] if generator is not None or task.targets is None else task.targets(row)[1:]
    ids, *others = (
        to_ids(f" {words}" if isinstance(words, str) else words, tokenizer, example.size)
        for words in (task.target(row, generator), *further)
    )
    confidence, reference = task.confidence(row), task.reference(row)
    return replace(example, target=ids, further=others, confidence=confidence, reference=reference)


def check_lengths(example: Example, config: UnivalConfig) -> None:
    """Raise UnivalError where an example is longer than the model has positions for."""
    longest = max(len(target) for target in (example.target, *example.further))
    source, written = len(example.source) + 2, 1 + len(example.prefix) + longest
    if example.writes_image:
        if len(example.target) != config.code_side**2:
            raise UnivalError(f"{len(example.target)} image codes, the model writes {config.code_side**2}")
        written = 0
    if max(source, written) > config.max_positions:
        raise UnivalError(f"{max(source, written)} tokens, the model has positions for {config.max_positions}")


def to_ids(words: Words, tokenizer: Tokenizer, size: tuple[int, int] | None) -> list[int]:
    """Return text, boxes (in an image of `size`) and image codes as ids."""
    if isinstance(words, str):
        return tokenizer.encode(words)
    if isinstance(words, Codes):
        return tokenizer.codes_to_ids(words.values)
    if isinstance(words, Box):
        if size is None:
            raise UnivalError("a box needs an image that it lies in")
        return tokenizer.box_to_ids(words, size)
    return [index for part in words for index in to_ids(part, tokenizer, size)]
