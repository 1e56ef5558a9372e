"""Files of a world as data sets of the model, and of tasks that the world does not have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import torch

from experiments.errors import StudyError
from experiments.unival.world.tables import read_world
from unival_core import TASKS, Tokenizer, UnivalConfig
from unival_core.data import Example, MediaCache, SomeRows, Task, TaskDataset, TsvTable, texts_of
from unival_core.training import RewardOptions


def world_tokenizer(world: Path, config: UnivalConfig) -> Tokenizer:
    """Make a tokenizer that knows every word of the world, of the prompts, and of the tasks' examples."""
    texts = {"question": "what", "caption": "what", "hypothesis": "what", "text": "what"}
    prompts, examples = [], []
    for task in TASKS.values():
        prompts += texts_of(task.prompt({**task.example, **texts}))
        examples += task.learnable_texts()
    return Tokenizer.train([*read_world(world).vocabulary, *prompts], config, behind=examples)


def rows_file(world: Path, task: str, split: str) -> Path:
    """Find a split of a task: among the world's files, or for other tasks in `data/<task>/<split>.tsv` beside it.

    Raises StudyError where there is none, naming the splits that there are or the file to write.
    """
    known = [name.split("/")[1] for name in read_world(world).files if name.startswith(f"{task}/")]
    file = world / task / f"{split}.tsv" if known else world.parent / "data" / task / f"{split}.tsv"
    if (known and split not in known) or not file.exists():
        way = f"there are {', '.join(known)}" if known else f"write it to {file}, columns as in TASKS[{task!r}]"
        raise StudyError(f"{world} has no {task}/{split}: {way}")
    return file


def rows_digest(world: Path, task: str, split: str) -> str:
    """Return the sha256 of a split's file, from the world's record where it has it."""
    file, record = rows_file(world, task, split), read_world(world).files
    return record[f"{task}/{split}"].sha256 if f"{task}/{split}" in record else sha256(file.read_bytes()).hexdigest()


class Files:
    """Makes data sets of a world's files; images are decoded once for all of them."""

    def __init__(self, world: Path, tokenizer: Tokenizer, config: UnivalConfig) -> None:
        self.world, self.tokenizer, self.config = world, tokenizer, config
        self.answers = read_world(world).answers
        self.cache = MediaCache()

    def data(
        self,
        task: str,
        split: str,
        *,
        training: bool = False,
        blank: bool = False,
        seed: int = 0,
        part: float = 1.0,
        reward: RewardOptions | None = None,
    ) -> TaskDataset:
        """Return the first `part` of a split's rows, with a `reward` those that count for it; with `blank` every image,
        video and audio is empty."""
        kind = Blank if blank else TaskDataset
        return kind(
            TASKS[task],
            some_rows(rows_file(self.world, task, split), TASKS[task], part, reward),
            self.tokenizer,
            self.config,
            training=training,
            seed=seed,
            answers=self.answers.get(task, ()),
            cache=self.cache,
        )

    def training(
        self, splits: Iterable[tuple[str, str]], seed: int, reward: RewardOptions | None = None
    ) -> dict[str, TaskDataset]:
        """Return data sets to train on, from pairs of task and split; with a `reward` their rows that count for it."""
        return {task: self.data(task, split, training=True, seed=seed, reward=reward) for task, split in splits}


def some_rows(path: Path, task: Task, part: float, reward: RewardOptions | None = None) -> SomeRows:
    """Return the first rows of a task's table, `part` of all and one at least, with a `reward` those whose boxes count
    for it. StudyError where none does."""
    table = TsvTable(path, task.columns, task.selected_cols)
    rows: Sequence[int] = range(max(1, round(part * len(table))))
    if reward is not None:
        rows = [row for row in rows if reward.counts([float(number) for number in table[row]["box"].split(",")])]
    if not rows:
        raise StudyError(f"{path} has no box of a size that is rewarded: use a larger world")
    return SomeRows(table, rows)


class Blank(TaskDataset):
    """Rows whose medium shows nothing: what a model answers then, it read off the text."""

    def read(self, row: int, number: int = 0) -> Example:
        example = super().read(row, number)
        if example.media is None:
            return example
        grey = 127 if example.media.dtype == torch.uint8 else 0
        return replace(example, media=torch.full_like(example.media, grey))
