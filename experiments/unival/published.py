"""Setup base: the published 0.25B checkpoints and the published tab-separated files, named as their pages name them.

    checkpoints/  unival_s2_hs/checkpoint1.pt, unival_vqa/checkpoint_best.pt, ...; own experts as ratatouille/vqa.pt
                  BPE/ with the three files of the vocabulary
    data/         vqa_data/vqa_val.tsv, caption_data/caption_test.tsv, ...

Splits have the names of setup pocket: `knowledge` is OKVQA, `lowquality` VizWiz, `novel` nocaps. The answers of VQAv2's
test set are secret: its `test` here is the published validation file, and it has no `val`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import ClassVar

from experiments.atomic import write_whole
from experiments.errors import StudyError
from experiments.study.points import PRETRAINED, Cell, Expert
from experiments.unival.base_experts import file_of, make_experts, step_at
from experiments.unival.pocket.kinds import KINDS
from merge import Input, MergeError, open_checkpoint
from unival_core import PUBLISHED_FILES, TASKS, GenerationOptions, Tokenizer, UnivalConfig, load_tokenizer
from unival_core.data import MediaCache, Published, ReferencedTable, TaskDataset, TsvTable, load_answers
from unival_core.metrics import PUBLISHED_AREAS

_UNIVAL = "https://github.com/mshukor/UnIVAL/blob/main"
CHECKPOINTS_PAGE = f"{_UNIVAL}/checkpoints.md"
DATA_PAGE = f"{_UNIVAL}/datasets.md"
BPE_PAGE = "https://github.com/mshukor/UnIVAL/tree/main/utils/BPE"
IMAGE_DATA_PAGE = "https://github.com/OFA-Sys/OFA/blob/main/datasets.md"

PRETRAINED_FILE = "unival_s2_hs/checkpoint1.pt"
STAGE_1 = "stage-1"  # pretrained on images alone
PRETRAINED_FILES = {PRETRAINED: PRETRAINED_FILE, STAGE_1: "unival_s1/checkpoint15.pt"}  # by kind of expert
BART_FILE = "bart.base/model.pt"  # what the original's first stage started from
PUBLISHED_SECONDS = 0.015  # a caption at batch 1 (arXiv 2307.16184, on one MI250X)


@dataclass(frozen=True)
class BaseSetup:
    """Published files in two folders; digests of large data files are kept in `folder`, the study's.

    Answers of videos are to their middle frames, and of long audio to its middle: the published ones are to random
    ones.
    """

    folder: Path
    checkpoints: Path
    data: Path

    name: ClassVar[str] = "base"
    size: ClassVar[float] = 1.0  # in float32

    @staticmethod
    def shifts(task: str) -> tuple[str, ...]:
        """Return the splits of a task with shifted data: those that were published."""
        return TASKS[task].published.shifts if task in TASKS else ()

    def source(self, expert: Expert, seed: int = 0) -> Input:
        """Find the published file, or `<kind>/<name>.pt` (.safetensors) of one's own, whatever the seed; where there
        is none, what `train` makes.

        Of some tasks' experts the running average, as in published evaluations, where the file has one.
        """
        published = TASKS[expert.task].published if expert.task in TASKS else Published()
        if expert.kind in PRETRAINED_FILES:
            file = self.checkpoints / PRETRAINED_FILES[expert.kind]
        elif published.checkpoint and KINDS[expert.kind].published:
            file = self.checkpoints / published.checkpoint
        else:
            file = self.checkpoints / expert.kind / f"{expert.name}.pt"
            other = file.with_suffix(".safetensors")
            file = other if other.exists() else file
            step = None if file.exists() else step_at(expert, seed)
            file = file if step is None else file_of(self, step, seed)
        if published.average:
            with suppress(MergeError):
                open_checkpoint(file, "extra_state.ema")
                return Input(expert.name, file, "extra_state.ema")
        return Input(expert.name, file)

    def tokenizer(self, config: UnivalConfig) -> Tokenizer:
        """Return the tokenizer stored with the pretrained model, or else the published one, from BPE/ beside the
        checkpoints."""
        bpe, file = self.checkpoints / "BPE", self.checkpoints / PRETRAINED_FILE
        return load_tokenizer(file, config, bpe=bpe if bpe.is_dir() else None)

    @property
    def pretrained(self) -> Path:
        """Return the file of the pretrained model."""
        return self.checkpoints / PRETRAINED_FILE

    def dataset(
        self,
        task: str,
        split: str,
        tokenizer: Tokenizer,
        config: UnivalConfig,
        cache: MediaCache,
        *,
        seed: int | None = None,
    ) -> TaskDataset:
        """Open published rows, with a seed for training. OKVQA and VizWiz are asked without repeating the question, as
        published."""
        known = TASKS[task]
        if split in known.published.unrepeated:
            known = replace(known, repeats_prompt=False)
        answers = self.answers_file(task, split)
        return TaskDataset(
            known,
            self.table(task, split),
            tokenizer,
            config,
            training=seed is not None,
            seed=seed or 0,
            answers=load_answers(answers, known) if answers else (),
            media_dir=self.data.parent if self.data.name == "ofa" else self.data,
            cache=cache,
        )

    def table(self, task: str, split: str) -> TsvTable:
        """Return published rows as they are in their files; where these tell captions apart from rows, one an image,
        with all its captions."""
        known = TASKS[task]
        columns = known.selected_cols
        if split in known.published.by_image:
            columns = (1, *columns[1:])
        table = TsvTable(self.files(task, split), known.columns, columns)
        references = self.references_file(task, split)
        return table if references is None else ReferencedTable(table, references)

    def data_digest(self, task: str, split: str) -> str:
        """Return the digest of the files and of the answers; media that the files name by path are not looked at."""
        files = [*self.files(task, split), *self.beside(task, split)]
        return f"sha256:{sha256(' '.join(self.file_digest(file) for file in files).encode()).hexdigest()}"

    def generation(self, task: str) -> GenerationOptions:
        """Search as published, with beams."""
        return TASKS[task].published.generation or TASKS[task].generation

    def metrics(self, task: str) -> tuple[str, ...]:
        """Quote the task's first metric."""
        return TASKS[task].metrics[:1]

    def guess(self, task: str) -> str | None:
        """Return the first of the few answers that a task allows; None for others, as files of training are of many
        gigabytes."""
        return next(iter(TASKS[task].answers), None)

    def floors(self, task: str) -> dict[str, float]:
        """Return nothing: images of published data are not scored by what is recognised in them."""
        return {}

    def limits_answers(self, task: str) -> bool:
        """Tell whether only some answers are allowed."""
        return bool(TASKS[task].answers or TASKS[task].published.answers)

    def areas(self) -> tuple[float, ...]:
        """Return the published areas, in square pixels."""
        return PUBLISHED_AREAS

    def files(self, task: str, split: str) -> list[Path]:
        """Return the files of a split; StudyError where none was published."""
        known = TASKS[task].published.files
        if split not in known:
            raise StudyError(
                f"there is no {split} split of {task} at setup base: choose {', '.join(known) or 'pocket'}"
            )
        return [self.data / name for name in known[split]]

    def answers_file(self, task: str, split: str) -> Path | None:
        """Return the list of answers of a split, if it has one."""
        known = TASKS[task].published.answers
        name = known.get(split, known.get(""))
        return None if name is None else self.data / name

    def references_file(self, task: str, split: str) -> Path | None:
        """Return the file of a split's captions, if they are not those of its rows."""
        name = TASKS[task].published.references.get(split)
        return None if name is None else self.data / name

    def beside(self, task: str, split: str) -> list[Path]:
        """Return the files that a split needs besides its rows."""
        found = (self.answers_file(task, split), self.references_file(task, split))
        return [file for file in found if file is not None]

    def file_digest(self, file: Path) -> str:
        """Return the SHA-256 of a file, computed again only when its size or time has changed."""
        if not file.exists():
            raise StudyError(f"{file} is missing: see {page_of(file)}")
        record = self.folder / "digests.json"
        known = known_digests(record)
        status = file.stat()
        mark = f"{status.st_size} {status.st_mtime_ns}"
        if known.get(str(file), [""])[0] != mark:
            whole = sha256()
            with file.open("rb") as stream:
                while block := stream.read(1 << 22):
                    whole.update(block)
            known[str(file)] = [mark, whole.hexdigest()]
            write_whole(record, json.dumps(known, indent=1))
        return known[str(file)][1]

    def expected(self, experts: Sequence[Expert], seed: int, places: Sequence[tuple[str, str]]) -> dict[Path, str]:
        """Return every file that is needed, with the page that tells where it comes from."""
        wanted = {self.source(expert, seed).path: self.page(expert) for expert in experts}
        places = [*places, *((expert.task, "train") for expert in experts if step_at(expert, seed) is not None)]
        for task, split in dict.fromkeys(places):
            wanted |= {file: page_of(file) for file in (*self.files(task, split), *self.beside(task, split))}
        if any(file.suffix == ".pt" for file in wanted):  # others carry their vocabulary
            wanted |= {self.checkpoints / "BPE" / name: BPE_PAGE for name in PUBLISHED_FILES}
        return wanted

    def page(self, expert: Expert) -> str:
        """Say where the file of an expert comes from."""
        made = f"{expert.id}: add --train, from the published experts"
        return page_of(self.source(expert).path) if step_at(expert, 0) is None else made

    def train(self, experts: Sequence[Expert], seed: int, processes: int, device: str = "cpu") -> None:
        """Make experts of the kinds that are made of published ones, one finetuning after the other, by their published
        recipes; StudyError for others that are missing."""
        make_experts(self, experts, seed, device)

    def pace(self, cells: Sequence[Cell], limit: int | None) -> str:
        """Guess the GPU hours at the published speed of captions."""
        rows = limit or 1000
        models = sum(len(cell.point.held) if cell.point.method == "ensemble" else 1 for cell in cells)
        hours = models * rows * PUBLISHED_SECONDS / 3600
        return f"about {hours:.1f} GPU hours with {rows} rows a cell, at the published {PUBLISHED_SECONDS} s a row"


def known_digests(record: Path) -> dict[str, list[str]]:
    """Return what was computed before; nothing where that is broken, as it is computed again."""
    with suppress(OSError, ValueError, RecursionError):
        known = json.loads(record.read_bytes())
        pairs = known.items() if isinstance(known, dict) else ()
        return {file: pair for file, pair in pairs if isinstance(pair, list) and list(map(type, pair)) == [str, str]}
    return {}


def page_of(file: Path) -> str:
    """Return the page of the original's documentation that leads to a file."""
    if file.suffix == ".pt":
        known = {*PRETRAINED_FILES.values(), *(task.published.checkpoint for task in TASKS.values())}
        return CHECKPOINTS_PAGE if "/".join(file.parts[-2:]) in known else "an expert of your own: unival-merge train"
    if file.parent.name == "BPE":
        return BPE_PAGE
    own = any(part in str(file) for part in ("okvqa", "vizwiz", "nocaps", "video_data", "audio_data"))
    return DATA_PAGE if own else IMAGE_DATA_PAGE
