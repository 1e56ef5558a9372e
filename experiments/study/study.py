"""The studies, as data: which models and merges of them are evaluated on which tasks and splits.

A study is anything with a `name`, a `question`, a `source` and `cells(choice)`; a line in `STUDIES` adds it. Those here
are of one shape, `Study`: experts finetuned from one ancestor, of several kinds, and mixtures of them. The scale
(pocket or base) decides only which shifted splits there are: a study is the same at both.

>>> cells = STUDIES["interpolation"].cells(Choice(only="vqa+caption", kinds=("vanilla",), points=3))
>>> [cell.point.label for cell in cells if (cell.task, cell.split) == ("vqa", "test")][1:4]
['1.00 vqa (vanilla, single)', '1.00 caption (vanilla, single)', '0.50 vqa + 0.50 caption (vanilla, interpolate)']
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from experiments.errors import StudyError
from experiments.grid.rows import share_label
from experiments.unival.pocket.pretrainings import COMPARISONS, comparisons_of, tasks_of

KINDS = ("pretrained", "vanilla", "ratatouille", "fusing", "joint", "reward", *COMPARISONS)
METHODS = ("single", "interpolate", "average", "ensemble")
POLICIES = ("average", "recalibrate:mixture", "recalibrate:task")  # and from:<name of an expert>
FAMILIES = (("vqa", "caption", "grounding", "entailment"), ("video-qa", "video-caption"))

# Shifted data by scale and task. At base scale, as in the paper: knowledge is OKVQA, lowquality VizWiz, novel nocaps.
_PICTURES = ("novel", "lowquality", "printed")
SHIFTS: dict[str, dict[str, tuple[str, ...]]] = {
    "pocket": {
        "vqa": (*_PICTURES, "knowledge"),
        "caption": _PICTURES,
        "grounding": _PICTURES,
        "entailment": _PICTURES,
        "video-qa": ("novel", "lowquality"),
        "video-caption": ("novel", "lowquality"),
    },
    "base": {"vqa": ("knowledge", "lowquality"), "caption": ("novel",)},
}
POCKET_ONLY = ("joint",)  # kinds that were never published


@dataclass(frozen=True)
class Expert:
    """A model that takes part: `name` is the word used in shares, `task` what it was finetuned on (tasks joined by "+"
    for a joint finetuning, "" for the pretrained model), `kind` how: for a training of the study `pretraining` the
    comparisons that it takes part in, joined by "+"."""

    name: str
    task: str
    kind: str

    def __post_init__(self) -> None:
        if not set(self.kind.split("+")) <= set(KINDS):
            raise StudyError(f"expert {self.name}: no kind {self.kind!r}: choose one of {', '.join(KINDS)}")

    @property
    def id(self) -> str:
        """Tells experts of different kinds apart."""
        return self.kind if self.kind == "pretrained" else f"{self.kind}/{self.name}"


@dataclass(frozen=True)
class Point:
    """One model to evaluate: experts by the names of their shares, put together by `method`.

    `single` is one expert as it is; `interpolate` (of two) and `average` (of more) merge weights; `ensemble` is the
    mean of the experts' next-token probabilities. `batchnorm` says where the statistics of merged weights come from:
    `average`, `from:<name>` (an expert's), `recalibrate:mixture` (measured on training inputs of all the experts'
    tasks) or `recalibrate:task` (on those of the task that is evaluated). Other points have their own: `average`.
    """

    experts: Mapping[str, Expert]
    shares: Mapping[str, float]
    method: str
    batchnorm: str = "average"

    def __post_init__(self) -> None:
        if set(self.experts) != set(self.shares) or not self.shares:
            raise StudyError(f"a point of experts {sorted(self.experts)} with shares of {sorted(self.shares)}")
        if self.method not in METHODS:
            raise StudyError(f"no method {self.method!r}: choose one of {', '.join(METHODS)}")

    @property
    def kind(self) -> str:
        """How its experts were finetuned."""
        return "+".join(dict.fromkeys(expert.kind for expert in self.experts.values()))

    @property
    def label(self) -> str:
        """The point in words."""
        policy = f", BatchNorm {self.batchnorm}" if self.batchnorm != "average" else ""
        return f"{share_label(self.shares)} ({self.kind}, {self.method}{policy})"

    @property
    def id(self) -> str:
        """Equal for equal points."""
        parts = [f"{share!r} {self.experts[name].id}" for name, share in self.shares.items()]
        return f"{self.method} {self.batchnorm} {' + '.join(parts)}"


@dataclass(frozen=True)
class Cell:
    """A point on a split of a task; `metrics` are names, () for those that the scale has for the task."""

    point: Point
    task: str
    split: str
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choice:
    """What is wanted of a study: `points` along every line (None: the study's own), `kinds` of experts (None: all),
    `only` one mixture ("vqa+caption"), `batchnorm` policies of merged points ("all": every one)."""

    scale: str = "pocket"
    split: str = "test"
    points: int | None = None
    kinds: tuple[str, ...] | None = None
    only: str | None = None
    batchnorm: tuple[str, ...] = ("average",)

    def __post_init__(self) -> None:
        if self.scale not in SHIFTS:
            raise StudyError(f"no scale {self.scale!r}: choose one of {', '.join(SHIFTS)}")
        if self.split not in ("test", "val"):
            raise StudyError(f"no split {self.split!r}: choose test, or val to choose settings")
        if self.points is not None and self.points < 2:
            raise StudyError(f"{self.points} points on a line: give 2 or more, the ends count")
        for policy in self.batchnorm:
            if policy not in (*POLICIES, "all") and not policy.startswith("from:"):
                raise StudyError(f"no BatchNorm policy {policy!r}: choose {', '.join(POLICIES)}, from:NAME or all")


class AnyStudy(Protocol):
    """What the grid needs of a study: a name, a question in a sentence, the source of the idea, and cells."""

    @property
    def name(self) -> str: ...
    @property
    def question(self) -> str: ...
    @property
    def source(self) -> str: ...
    def cells(self, choice: Choice) -> list[Cell]:
        """Every cell once, those of one point together."""
        ...


@dataclass(frozen=True)
class Study:
    """Experts, and mixtures of them.

    `experts` are tasks by name, each of every one of `kinds`. `shape` says which points of a mixture there are: the
    `single` experts, a `line` of `points` between two, the `uniform` average, or a `simplex` with `points` along every
    edge. Points are evaluated on their experts' tasks; the singles and the middle (equal shares) also on shifted data
    with `shifts`, and on the family's other tasks with `others`. Of the kinds in `ensembles` every merge has the
    prediction ensemble at the same shares beside it; the pretrained model is beside everything, and so is the joint
    finetuning where `kinds` has it. `metrics` replace a task's own.
    """

    name: str
    question: str
    source: str
    experts: Mapping[str, str]
    kinds: tuple[str, ...]
    mixtures: tuple[tuple[str, ...], ...]
    shape: str
    points: int = 0
    ensembles: tuple[str, ...] = ()
    others: bool = True
    shifts: bool = True
    metrics: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    def cells(self, choice: Choice) -> list[Cell]:
        """Every cell once, those of one point together; StudyError where the choice names what there is not."""
        kinds, mixtures = self.chosen_kinds(choice), self.chosen_mixtures(choice)
        found: list[Cell] = []
        for names in mixtures:
            for kind in (kind for kind in kinds if kind != "joint"):
                experts = {name: Expert(name, self.experts[name], kind) for name in names}
                for point in self.points_of(experts, choice):
                    found += self.cells_of(point, names, choice)
        references = [cell for family in FAMILIES for cell in self.references(found, family, "joint" in kinds)]
        unique = {(cell.point.id, cell.task, cell.split): cell for cell in references + found}
        together: dict[str, list[Cell]] = {}
        for cell in unique.values():
            together.setdefault(cell.point.id, []).append(cell)
        return [cell for group in together.values() for cell in group]

    def chosen_kinds(self, choice: Choice) -> tuple[str, ...]:
        """The kinds wanted of those there are."""
        wanted = self.kinds if choice.kinds is None else choice.kinds
        if unknown := [kind for kind in wanted if kind not in self.kinds]:
            raise StudyError(f"study {self.name} has no experts {unknown[0]!r}: choose of {', '.join(self.kinds)}")
        return tuple(kind for kind in wanted if choice.scale == "pocket" or kind not in POCKET_ONLY)

    def chosen_mixtures(self, choice: Choice) -> list[tuple[str, ...]]:
        """The mixtures wanted, one if the choice names it."""
        found = [names for names in self.mixtures if choice.only is None or set(choice.only.split("+")) == set(names)]
        if not found:
            known = ", ".join("+".join(names) for names in self.mixtures)
            raise StudyError(f"study {self.name} has nothing of {choice.only!r}: choose one of {known}")
        return found

    def points_of(self, experts: Mapping[str, Expert], choice: Choice) -> Iterator[Point]:
        """The points of a mixture, each merge under every policy, its ensemble behind them."""
        kind = next(iter(experts.values())).kind
        merges = [shares for shares in self.shares_of(list(experts), choice) if len(held(shares)) > 1]
        for name, expert in experts.items():
            yield single(expert, name)
        for policy in policies_for(choice.batchnorm, experts):
            for shares in merges:
                yield Point(experts, shares, "interpolate" if len(experts) == 2 else "average", policy)
        if kind in self.ensembles:
            for shares in merges:
                yield Point(experts, shares, "ensemble")

    def shares_of(self, names: Sequence[str], choice: Choice) -> list[dict[str, float]]:
        """The shares of every point of a mixture, made as i / n."""
        if self.shape == "single":
            return []
        if self.shape == "uniform":
            return [dict.fromkeys(names, 1 / len(names))]
        steps = (choice.points or self.points) - 1
        return [
            {name: count / steps for name, count in zip(names, counts, strict=True)} for counts in lattice(names, steps)
        ]

    def cells_of(self, point: Point, names: Sequence[str], choice: Choice) -> Iterator[Cell]:
        """A point on its tasks; shifted data are for reporting, so there are none beside the split val."""
        own = list(dict.fromkeys(self.experts[name] for name in names))
        is_wide = len(set(point.shares.values())) == 1
        tasks = [task for family in FAMILIES if own[0] in family for task in family] if is_wide and self.others else own
        for task in own + [task for task in tasks if task not in own]:
            shifted = SHIFTS[choice.scale].get(task, ()) if self.shifts and is_wide and choice.split == "test" else ()
            for split in (choice.split, *shifted):
                yield Cell(point, task, split, self.metrics.get(task, ()))

    def references(self, cells: Sequence[Cell], family: Sequence[str], has_joint: bool) -> list[Cell]:
        """The pretrained model, and the joint finetuning on a family of tasks, on all that its cells ask."""
        asked = {(cell.task, cell.split): cell.metrics for cell in cells if cell.task in family}
        if not asked:
            return []
        models = [Expert("pretrained", "", "pretrained")]
        if has_joint:
            models.append(Expert("joint" if family == FAMILIES[0] else "joint-video", "+".join(family), "joint"))
        return [Cell(single(model), *place, metrics) for model in models for place, metrics in asked.items()]


@dataclass(frozen=True)
class Pretrainings:
    """Models that were pretrained in several ways, each by itself; `comparisons` has for each what it is asked by name
    of the training (experiments.unival.pocket.pretrainings). One that takes part in several is evaluated once."""

    name: str
    question: str
    source: str
    comparisons: Mapping[str, Mapping[str, tuple[str, ...]]]

    def cells(self, choice: Choice) -> list[Cell]:
        """Every cell once, those of one training together; StudyError where the choice names what there is not."""
        if choice.scale != "pocket":
            raise StudyError(f"study {self.name} is of pocket scale: at {choice.scale} scale nothing is pretrained")
        if choice.kinds is not None:
            raise StudyError(
                f"study {self.name} has comparisons, no kinds: choose --only {', '.join(self.comparisons)}"
            )
        if choice.only is not None and choice.only not in self.comparisons:
            raise StudyError(
                f"study {self.name} has nothing of {choice.only!r}: choose one of {', '.join(self.comparisons)}"
            )
        wanted = {name: own for name, own in self.comparisons.items() if choice.only in (None, name)}
        models = {name: Expert(name, "", "+".join(comparisons_of(name))) for name in tasks_of(wanted)}
        return [
            Cell(single(models[name]), task, choice.split) for name, own in tasks_of(wanted).items() for task in own
        ]


def single(expert: Expert, name: str = "") -> Point:
    """An expert as it is, the same point whatever mixture it is an end of."""
    name = name or expert.name
    return Point({name: expert}, {name: 1.0}, "single")


def held(shares: Mapping[str, float]) -> list[str]:
    """The names with a share."""
    return [name for name, share in shares.items() if share]


def policies_for(wanted: Sequence[str], names: Sequence[str] | Mapping[str, Expert]) -> list[str]:
    """BatchNorm policies of a mixture; statistics from an expert that is not in it are none."""
    every = ["average", *(f"from:{name}" for name in names), *POLICIES[1:]]
    return every if "all" in wanted else [policy for policy in every if policy in wanted]


def lattice(names: Sequence[str], steps: int) -> list[tuple[int, ...]]:
    """All ways to give `steps` parts to the names, the first one's falling."""
    if len(names) == 1:
        return [(steps,)]
    return [(own, *rest) for own in range(steps, -1, -1) for rest in lattice(names[1:], steps - own)]


_EXPERTS = {task: task for family in FAMILIES for task in family}
_PAIRS = (("vqa", "caption"), ("caption", "grounding"), ("entailment", "grounding"), ("vqa", "grounding"))
STUDIES: dict[str, AnyStudy] = {
    study.name: study
    for study in (
        Study(
            name="interpolation",
            question="What do the weights between two experts know of both tasks?",
            source="arXiv 2307.16184, figures 2 and 6",
            experts=_EXPERTS,
            kinds=("vanilla", "ratatouille", "joint"),
            mixtures=(*_PAIRS, FAMILIES[1]),
            shape="line",
            points=11,
            ensembles=("vanilla",),
        ),
        Study(
            name="averaging",
            question="Is one average of all experts better than the model they started from, on new data too?",
            source="arXiv 2307.16184, figure 3",
            experts=_EXPERTS,
            kinds=("vanilla", "ratatouille", "fusing", "joint"),
            mixtures=(FAMILIES[0],),
            shape="uniform",
            ensembles=("vanilla", "ratatouille", "fusing"),
        ),
        Study(
            name="ood",
            question="How do single experts of each kind fare on shifted data?",
            source="arXiv 2307.16184, table 20",
            experts=_EXPERTS,
            kinds=("vanilla", "fusing", "ratatouille"),
            mixtures=tuple((task,) for task in FAMILIES[0]),
            shape="single",
            others=False,
        ),
        Study(
            name="rewarded-soups",
            question="Do mixtures of experts rewarded for small, medium and large boxes trade these off?",
            source="arXiv 2306.04488, on grounding",
            experts=dict.fromkeys(("small", "medium", "large"), "grounding"),
            kinds=("reward",),
            mixtures=(("small", "medium", "large"),),
            shape="simplex",
            points=6,
            ensembles=("reward",),
            others=False,
            shifts=False,
            metrics={"grounding": ("Acc@0.5", "Acc@0.5 small", "Acc@0.5 medium", "Acc@0.5 large")},
        ),
        Pretrainings(
            name="pretraining",
            question="What do balance, a curriculum, more tasks and more modalities bring to pretraining?",
            source="arXiv 2307.16184, tables 2, 3, 4, 12, 16 and 17",
            comparisons=COMPARISONS,
        ),
    )
}


def study_named(name: str) -> AnyStudy:
    """A study; StudyError with the names of all if there is none."""
    if name not in STUDIES:
        raise StudyError(f"no study {name!r}: choose one of {', '.join(STUDIES)}")
    return STUDIES[name]
