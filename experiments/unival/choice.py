"""What is wanted of a study of UnIVAL, and the studies that mix nothing: each model by itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from experiments.errors import StudyError
from experiments.grid.notes import Notes
from experiments.study.cells import Outline
from experiments.study.methods import Sweep
from experiments.study.points import POLICIES, Cell, Expert, single, together
from experiments.unival.pocket.pretrainings import comparisons_of, tasks_of
from experiments.unival.setups import CONFIDENCE, LOSS, SETUPS
from unival_core import TASKS


@dataclass(frozen=True)
class Choice:
    """What is wanted of a study: `points` along every line (None: the study's own), `kinds` of experts (None: all),
    `only` one mixture ("vqa+caption"), `batchnorm` policies of merged points ("all": every one), `methods` of merging
    (None: the study's)."""

    setup: str = "pocket"
    split: str = "test"
    points: int | None = None
    kinds: tuple[str, ...] | None = None
    only: str | None = None
    batchnorm: tuple[str, ...] = ("average",)
    methods: tuple[str | Sweep, ...] | None = None

    def __post_init__(self) -> None:
        if self.setup not in SETUPS:
            raise StudyError(f"no setup {self.setup!r}: choose one of {', '.join(SETUPS)}")
        if self.split not in ("test", "val"):
            raise StudyError(f"no split {self.split!r}: choose test, or val to choose settings")
        if self.points is not None and self.points < 2:
            raise StudyError(f"{self.points} points on a line: give 2 or more, the ends count")
        for policy in self.batchnorm:
            if policy not in (*POLICIES, "all") and not policy.startswith("from:"):
                raise StudyError(f"no BatchNorm policy {policy!r}: choose {', '.join(POLICIES)}, from:NAME or all")


@dataclass(frozen=True, kw_only=True)
class UnivalStudy(ABC):
    """A study of UnIVAL: its name, its question in a sentence, the source of the idea, by task the metrics that
    replace the task's own, whether to `choose` points on val before others splits (`experiments.Study`), and the
    `setups` where it can be run."""

    name: str
    question: str
    source: str
    metrics: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    choose: bool = False
    setups: tuple[str, ...] = tuple(SETUPS)

    @abstractmethod
    def cells(self, choice: Choice) -> list[Cell]:
        """List every cell once, those of one point together; StudyError where the choice names what there is not."""

    @property
    def notes(self) -> Notes:
        """Return what pages made of its rows say of it, and the tables that they show besides."""
        return Notes(self.question, self.source, beside=[LOSS, CONFIDENCE])

    def mixtures_of(self, choice: Choice) -> list[dict[str, Expert]]:
        """Return the experts of every mixture wanted by name, of every kind apart; StudyError where there are none."""
        raise StudyError(f"study {self.name} mixes nothing: there is no ratio to choose")


@dataclass(frozen=True, kw_only=True)
class PretrainingStudy(UnivalStudy):
    """Models that were pretrained in several ways, each by itself; `comparisons` has for each what it is asked by name
    of the training (experiments.unival.pocket.pretrainings). One that takes part in several is evaluated once."""

    comparisons: Mapping[str, Mapping[str, tuple[str, ...]]]

    @property
    def notes(self) -> Notes:
        """Add the comparisons, as tables of their own."""
        return replace(super().notes, tables=self.comparisons)

    def cells(self, choice: Choice) -> list[Cell]:
        """Return every cell once, those of one training together; StudyError where the choice names what there is
        not."""
        known = ", ".join(self.comparisons)
        if choice.setup != "pocket":
            raise StudyError(f"study {self.name} is of setup pocket: at setup {choice.setup} nothing is pretrained")
        if choice.kinds is not None:
            raise StudyError(f"study {self.name} has comparisons, no kinds: choose --only {known}")
        if choice.only is not None and choice.only not in self.comparisons:
            raise StudyError(f"study {self.name} has nothing of {choice.only!r}: choose one of {known}")
        if choice.methods is not None:
            raise StudyError(f"study {self.name} merges nothing, by no method")
        asked = tasks_of({name: own for name, own in self.comparisons.items() if choice.only in (None, name)})
        return Outline(
            experts={name: Expert(name, "", "+".join(comparisons_of(name))) for name in asked},
            mixtures=(),
            ask=lambda point: (Cell(point, task, choice.split) for name in point.experts for task in asked[name]),
        ).cells()


@dataclass(frozen=True, kw_only=True)
class PublishedStudy(UnivalStudy):
    """Every published model by itself on all published data but those it was trained on: experts on their own tasks,
    those `before` finetuning, by the media that they read, on all of such media."""

    before: Mapping[Expert, tuple[str, ...]]

    def cells(self, choice: Choice) -> list[Cell]:
        """List every cell once, those of one model together; StudyError where the choice names what there is not."""
        if choice.setup not in self.setups:
            raise StudyError(f"study {self.name} is of setup base: add --setup base --checkpoints DIR --data DIR")
        if choice.kinds is not None or choice.methods is not None:
            raise StudyError(f"study {self.name} has published models and merges nothing: choose a task with --only")
        tasks = {name: task for name, task in TASKS.items() if task.published.checkpoint}
        if choice.only is not None and choice.only not in tasks:
            raise StudyError(f"study {self.name} has nothing of {choice.only!r}: choose one of {', '.join(tasks)}")
        found: list[Cell] = []
        for name in tasks if choice.only is None else [choice.only]:
            models = [expert for expert, media in self.before.items() if tasks[name].medium in media]
            files = tasks[name].published.files
            splits = [split for split in files if split != "train" and (choice.split == "test" or split == "val")]
            metrics = self.metrics.get(name, tasks[name].metrics)
            found += [
                Cell(single(model), name, split, metrics)
                for model in [*models, Expert(name, name, "vanilla")]
                for split in splits
            ]
        return together(found)
