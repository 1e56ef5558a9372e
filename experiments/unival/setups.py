"""Where a study's weights and data are, and how its tasks are asked, at a scale.

The grid asks a `Scale` for files and data sets and knows nothing else of them. A scale is small and can be pickled, so
that workers open for themselves what they need.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from experiments.errors import StudyError
from experiments.study.study import Expert, Study
from experiments.unival.pocket.data import Files
from experiments.unival.pocket.experts import expert_file
from experiments.unival.pocket.pipeline import Pocket
from experiments.unival.pocket.table import GREEDY, METRIC
from experiments.unival.published import BaseScale
from experiments.unival.world.tables import read_world
from merge import Input
from unival_core.config import UnivalConfig
from unival_core.data.dataset import TaskDataset
from unival_core.data.media_cache import MediaCache
from unival_core.decoding import GenerationOptions
from unival_core.metrics import METRICS, SIZES, box_accuracy
from unival_core.tasks import TASKS
from unival_core.vocabulary import Tokenizer, load_tokenizer

BOXES = {f"Acc@0.5 {size}": size for size in SIZES}


class Scale(Protocol):
    """What the grid asks. `seed` is that of the finetunings, `section` the part of training files that holds weights.

    All raise StudyError where a file is missing, with its name and the way to get it.
    """

    @property
    def name(self) -> str: ...
    @property
    def seed(self) -> int: ...
    def expert_file(self, expert: Expert) -> Path:
        """The checkpoint of an expert."""
        ...

    def section(self, expert: Expert) -> str:
        """The section of its file, for `merge.open_checkpoint`."""
        ...

    def tokenizer(self, file: Path, config: UnivalConfig) -> Tokenizer:
        """What reads and writes the model's text."""
        ...

    def dataset(
        self, task: str, split: str, tokenizer: Tokenizer, config: UnivalConfig, cache: MediaCache
    ) -> TaskDataset:
        """The rows of a split, asked as in evaluation."""
        ...

    def data_digest(self, task: str, split: str) -> str:
        """The content of a split, and of the answers that its task allows."""
        ...

    def generation(self, task: str) -> GenerationOptions:
        """How answers are searched for."""
        ...

    def metrics(self, task: str) -> tuple[str, ...]:
        """The metrics quoted for a task."""
        ...

    def areas(self) -> tuple[float, float]:
        """Square pixels at which boxes stop being small, and start being large."""
        ...

    def expected(self, experts: Sequence[Expert], places: Sequence[tuple[str, str]]) -> dict[Path, str]:
        """The files that experts and data (pairs of task and split) lie in, each with where it comes from."""
        ...


@dataclass(frozen=True)
class PocketScale:
    """Models that `unival-merge pocket` made in a folder; experts of a finetuning seed lie in `seed-<seed>`."""

    folder: Path
    seed: int = 0

    @property
    def name(self) -> str:
        """That of the scale."""
        return "pocket"

    @property
    def pocket(self) -> Pocket:
        """The one of the seed's experts; those of the folder's own seed may lie in the folder itself."""
        record = self.folder / "pocket.json"
        if not record.is_file():
            raise StudyError(f"{self.folder} has no pocket models: make them, unival-merge pocket {self.folder}")
        made = json.loads(record.read_text())
        root = Pocket(self.folder, made["preset"], made["seed"])
        own = root.with_seed(self.seed)
        return root if root.seed == self.seed and not own.folder.exists() else own

    def expert_file(self, expert: Expert) -> Path:
        """Where `experiments.unival.pocket.experts` puts it."""
        return expert_file(self.pocket, expert)

    def section(self, expert: Expert) -> str:
        """There is one."""
        return "auto"

    def tokenizer(self, file: Path, config: UnivalConfig) -> Tokenizer:
        """The one stored in the file; all models have the backbone's, where the pretrained one is not made yet."""
        return load_tokenizer(file if file.exists() else self.pocket.backbone, config)

    def dataset(
        self, task: str, split: str, tokenizer: Tokenizer, config: UnivalConfig, cache: MediaCache
    ) -> TaskDataset:
        """Rows of the embedded world."""
        files = Files(self.pocket.world, tokenizer, config)
        files.cache = cache
        self.data_digest(task, split)
        return files.data(task, split)

    def data_digest(self, task: str, split: str) -> str:
        """From the record of the world."""
        world = read_world(self.pocket.world)
        if f"{task}/{split}" not in world.files:
            known = [name.split("/")[1] for name in world.files if name.startswith(f"{task}/")]
            raise StudyError(f"{self.pocket.world} has no {task}/{split}: there are {', '.join(known) or 'none'}")
        content = "\n".join((world.files[f"{task}/{split}"].sha256, *world.answers.get(task, ())))
        return f"sha256:{sha256(content.encode()).hexdigest()}"

    def generation(self, task: str) -> GenerationOptions:
        """Greedy: beams of 5 take thrice the time."""
        return replace(TASKS[task].generation, beam=GREEDY)

    def metrics(self, task: str) -> tuple[str, ...]:
        """One that has scores of single examples."""
        return (METRIC.get(task, TASKS[task].metrics[0]),)

    def areas(self) -> tuple[float, float]:
        """Terciles of the boxes in training."""
        world = read_world(self.pocket.world)
        return world.small_below, world.large_above

    def expected(self, experts: Sequence[Expert], places: Sequence[tuple[str, str]]) -> dict[Path, str]:
        """The experts' files; the world comes with the pretrained model."""
        return {self.expert_file(expert): f"{expert.id} of seed {self.seed}: add --train" for expert in experts}


def scorers(scale: Scale, names: tuple[str, ...]) -> dict[str, Any]:
    """The functions of metrics by name; boxes are small and large by the scale's areas."""
    if unknown := [name for name in names if name not in METRICS]:
        raise StudyError(f"no metric {unknown[0]!r}: choose from {', '.join(METRICS)}")
    sized = {name: partial(box_accuracy, size=BOXES[name], areas=scale.areas()) for name in names if name in BOXES}
    return {name: METRICS[name] for name in names} | sized


def scale_named(
    name: str, folder: Path, seed: int, *, checkpoints: Path | None = None, data: Path | None = None
) -> Scale:
    """The scale of a study in a folder; at base scale with the folders of published files."""
    if name == "pocket":
        return PocketScale(folder, seed)
    if name == "base":
        if checkpoints is None or data is None:
            raise StudyError("base scale needs --checkpoints and --data, the folders of published files")
        return BaseScale(folder, checkpoints, data, seed)
    raise StudyError(f"no scale {name!r}: choose pocket or base")


def expert_inputs(scale: Scale, study: Study, names: Sequence[str], kind: str) -> dict[str, Input]:
    """Name the files of a study's experts of one kind, for a recipe."""
    experts = {name: Expert(name, study.experts[name], kind) for name in names}
    return {name: Input(name, scale.expert_file(one), scale.section(one)) for name, one in experts.items()}
