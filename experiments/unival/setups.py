"""Where weights and data of the UnIVAL studies are, and how its tasks are asked: at setup `pocket` or `base`.

Both setups answer the same questions. `size` is the GB of a model where no file is there to tell.
A setup is small and can be pickled: processes open for themselves what they need. All
methods raise StudyError where a file is missing, with its name and the way to get it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import ClassVar

from PIL import Image

from experiments.errors import StudyError
from experiments.statistics.calibration import CONFIDENCE as CONFIDENCE
from experiments.study.points import Cell, Expert
from experiments.unival.chance import most_common
from experiments.unival.pocket.cache import user_cache
from experiments.unival.pocket.codec import CODEC, DRAWN_SHIFTS, contents_of, floors_of, images_of
from experiments.unival.pocket.codes import with_codes
from experiments.unival.pocket.data import Files, rows_digest, rows_file
from experiments.unival.pocket.experts import expert_file, make_experts
from experiments.unival.pocket.pipeline import Pocket
from experiments.unival.pocket.table import GREEDY
from experiments.unival.published import BaseSetup
from experiments.unival.world.audit import common_box
from experiments.unival.world.tables import read_world
from experiments.unival.world.tasks import TASKS as WORLD_TASKS
from merge import Input
from unival_core import CONFIGS, TASKS, GenerationOptions, Tokenizer, UnivalConfig, load_tokenizer
from unival_core.data import MediaCache, TaskDataset, TsvTable

LOSS = "negative log-likelihood"  # and CONFIDENCE: metrics that cells have beside the quoted one
CONTENT = "recognised content"  # of images: METRICS knows none that looks at them


@dataclass(frozen=True)
class PocketSetup:
    """Models that `unival-merge pocket` made in a folder; experts of a finetuning seed lie in `seed-<seed>`."""

    folder: Path

    name: ClassVar[str] = "pocket"
    size: ClassVar[float] = 0.0

    def pocket(self, seed: int | None = None) -> Pocket:
        """Return the pocket in the folder, or that of a seed's experts; those of the folder's own seed may lie in
        itself."""
        root = Pocket.read(self.folder)
        own = root if seed is None else root.with_seed(seed)
        return own if own.folder.exists() or root.seed != seed else root

    @staticmethod
    def shifts(task: str) -> tuple[str, ...]:
        """Return the splits of a task with shifted data: those that a world of full size has."""
        if TASKS[task].writes == "codes":
            return DRAWN_SHIFTS
        return WORLD_TASKS[task].shifts if task in WORLD_TASKS else ()

    def source(self, expert: Expert, seed: int) -> Input:
        """Return the checkpoint of an expert, where `experiments.unival.pocket.experts` puts it."""
        return Input(expert.name, expert_file(self.pocket(seed), expert))

    def tokenizer(self, config: UnivalConfig) -> Tokenizer:
        """Return the tokenizer stored with the pretrained model, with as many codes as `config` has; all have the
        backbone's, where that one is not made yet."""
        pocket, own = self.pocket(), replace(config, codes=CONFIGS[self.name].codes)
        known = load_tokenizer(pocket.pretrained if pocket.pretrained.exists() else pocket.backbone, own)
        return with_codes(known, config.codes)

    def dataset(
        self, task: str, split: str, tokenizer: Tokenizer, config: UnivalConfig, cache: MediaCache
    ) -> TaskDataset:
        """Return the rows of a split of the embedded world, asked as in evaluation."""
        files = Files(self.pocket().world, tokenizer, config)
        files.cache = cache
        self.data_digest(task, split)
        return files.data(task, split)

    def table(self, task: str, split: str) -> TsvTable:
        """Return the rows of a split of the embedded world, as they are in its file."""
        known = TASKS[task]
        return TsvTable(rows_file(self.pocket().world, task, split), known.columns, known.selected_cols)

    def data_digest(self, task: str, split: str) -> str:
        """Return the content of a split and of the answers that its task allows, by the world's record or the file
        itself."""
        folder = self.pocket().world
        content = "\n".join((rows_digest(folder, task, split), *read_world(folder).answers.get(task, ())))
        return f"sha256:{sha256(content.encode()).hexdigest()}"

    def generation(self, task: str) -> GenerationOptions:
        """Say how answers are searched for: greedily, as beams of 5 take thrice the time; of images how they are drawn,
        from as large a share of all codes as published."""
        options = replace(TASKS[task].sized_for(CONFIGS[self.name]).generation, beam=GREEDY)
        if TASKS[task].writes == "codes":
            options = replace(options, top_k=options.top_k * CODEC.codes // CONFIGS["base"].codes)
        return options

    def metrics(self, task: str) -> tuple[str, ...]:
        """Return the metric quoted for a task, one that has scores of single examples; of images their content."""
        return (CONTENT if TASKS[task].writes == "codes" else TASKS[task].quoted(self.name),)

    def contents(self, codes: Sequence[Sequence[int]], captions: Sequence[str]) -> list[float]:
        """Return which share of each caption's facts is recognised in the image of its codes."""
        return contents_of(self.pocket(), codes, captions)

    def images(self, codes: Sequence[Sequence[int]]) -> list[Image.Image]:
        """Return the images of codes."""
        return images_of(self.pocket(), codes)

    def guess(self, task: str) -> str | tuple[float, ...] | None:
        """Return one answer to all rows: the most frequent in training, of boxes that of the most frequent place; None
        for tasks without rows to train on, and for images."""
        if TASKS[task].writes == "codes":
            return None
        if TASKS[task].writes == "box":
            return common_box(self.pocket().world) if task in WORLD_TASKS else None
        with suppress(StudyError):
            return most_common(TASKS[task], self.table(task, "train"))
        return None

    def floors(self, task: str) -> dict[str, float]:
        """Return by split the content of images that others' captions asked for; nothing for tasks without images."""
        return floors_of(self.pocket()) if TASKS[task].writes == "codes" else {}

    def limits_answers(self, task: str) -> bool:
        """Tell whether only some answers are allowed."""
        return bool(TASKS[task].answers or read_world(self.pocket().world).answers.get(task))

    def areas(self) -> tuple[float, float]:
        """Return the areas, in square pixels, at which boxes stop being small, and start being large: terciles of the
        boxes in training."""
        world = read_world(self.pocket().world)
        return world.small_below, world.large_above

    def expected(self, experts: Sequence[Expert], seed: int, places: Sequence[tuple[str, str]]) -> dict[Path, str]:
        """Return the files needed, each with where it comes from: the experts', as the world comes with the pretrained
        one."""
        return {self.source(expert, seed).path: f"{expert.id} of seed {seed}: add --train" for expert in experts}

    def train(self, experts: Sequence[Expert], seed: int, processes: int, device: str = "cpu") -> None:
        """Finetune the experts that are missing, on the CPU; finished runs are kept in this user's cache."""
        make_experts(self.pocket(seed), experts, processes, cache=user_cache())

    def pace(self, cells: Sequence[Cell], limit: int | None) -> str:
        """Say how long cells may take before any was evaluated: machines differ too much to guess."""
        return ""


Setup = PocketSetup | BaseSetup
SETUPS: dict[str, type[Setup]] = {"pocket": PocketSetup, "base": BaseSetup}


def setup_named(name: str, folder: Path, *, checkpoints: Path | None = None, data: Path | None = None) -> Setup:
    """Return the setup of a study in a folder; `base` needs the folders of published files too."""
    if name == "pocket":
        return PocketSetup(folder)
    if name == "base":
        if checkpoints is None or data is None:
            raise StudyError("setup base needs --checkpoints and --data, the folders of published files")
        return BaseSetup(folder, checkpoints, data)
    raise StudyError(f"no setup {name!r}: choose one of {', '.join(SETUPS)}")
