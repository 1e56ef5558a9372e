"""The built-in studies, as data: which models and merges of them are evaluated on which tasks and splits.

A study is one entry of STUDIES (docs/studies.md shows how to add one). Those of one shape, `MixtureStudy`, have experts
finetuned from one ancestor, of several kinds, and mixtures of them. The setup (pocket or base) decides only which
shifted splits there are: a study is the same at both.

>>> cells = STUDIES["interpolation"].cells(Choice(only="vqa+caption", kinds=("vanilla",), points=3))
>>> [cell.point.label for cell in cells if (cell.task, cell.split) == ("vqa", "test")][1:4]
['1.00 vqa (vanilla, single)', '1.00 caption (vanilla, single)', '0.50 vqa + 0.50 caption (vanilla, interpolate)']
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from experiments.errors import StudyError
from experiments.grid.notes import Notes
from experiments.study.cells import Outline, is_even
from experiments.study.methods import ALL, Sweep, plane, sweeps_of
from experiments.study.points import START, Cell, Expert, Point, single, together
from experiments.unival.choice import Choice, PretrainingStudy, PublishedStudy, UnivalStudy
from experiments.unival.pocket.families import families
from experiments.unival.pocket.kinds import KINDS, PROGRESS
from experiments.unival.pocket.pretrainings import COMPARISONS
from experiments.unival.published import STAGE_1
from experiments.unival.setups import SETUPS
from unival_core.metrics import SIZES

if TYPE_CHECKING:
    from experiments.study.study import Mixture

SHAPES = ("single", "uniform", "line")
FAMILIES = families()
ALL_TASKS = {task: task for family in FAMILIES.values() for task in family}
IMAGE_TASKS = {task: task for task in FAMILIES["image"]}


@dataclass(frozen=True, kw_only=True)
class MixtureStudy(UnivalStudy):
    """Experts, and mixtures of them.

    `experts` are tasks by name, each of every one of `kinds`. `shape` says which points of a mixture there are: the
    `single` experts, the `uniform` average, or a `line` of `points` along every edge between two (of three or more
    experts a simplex); `methods` how they are merged (`experiments.Study`), those with a base from the pretrained
    model. Points are evaluated on their experts' tasks; the singles and the middle (equal shares) also on
    the other tasks of the experts' family, one of `families`, and with `shifts` on shifted data. Of the kinds in
    `ensembles` every merge has the prediction ensemble at the same shares beside it. The models `beside`, by default
    the pretrained one, are asked all that any other is, and so are models of a whole family where `kinds` has such.
    Findings compare the average of experts of the kind `contender`, if there is one, with those of the other kinds on
    shifted data. `progress` says of kinds which share of one finetuning they have had.
    """

    experts: Mapping[str, str]
    mixtures: tuple[tuple[str, ...], ...]
    shape: str = "line"
    points: int = 11
    methods: tuple[str | Sweep, ...] = ("interpolate",)
    kinds: tuple[str, ...] = ("vanilla",)
    ensembles: tuple[str, ...] = ()
    families: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    shifts: bool = True
    contender: str = ""
    beside: tuple[Expert, ...] = (START,)
    progress: Mapping[str, float] = field(default_factory=dict[str, float])

    def __post_init__(self) -> None:
        strange = {
            "expert": {name for names in self.mixtures for name in names} - set(self.experts),
            "kind": {*self.kinds, *self.ensembles, *self.progress} - set(KINDS) | {self.contender} - {"", *self.kinds},
            "shape": {self.shape} - set(SHAPES),
        }
        known: dict[str, Iterable[str]] = {"expert": self.experts, "kind": KINDS, "shape": SHAPES}
        for what, names in strange.items():
            if names:
                raise StudyError(f"study {self.name}: no {what} {min(names)!r}: choose of {', '.join(known[what])}")
        sweeps_of(self.methods, self.name, has_base=True)

    @property
    def notes(self) -> Notes:
        """Add the contender and the progress."""
        return replace(super().notes, contender=self.contender, progress=self.progress)

    def cells(self, choice: Choice) -> list[Cell]:
        """List every cell once, those of one point together; StudyError where the choice names what there is not."""
        if self.choose and choice.setup != "pocket":
            raise StudyError(f"study {self.name} chooses on val, which published data lack: run it at setup pocket")
        if choice.setup not in self.setups:
            told = f"study {self.name} is of setup {', '.join(self.setups)}"
            raise StudyError(f"{told}: there are no such experts at setup {choice.setup}")
        found = [cell for outline in self.outlines(choice) for cell in outline.cells()]
        whole = [kind for kind in self.kinds_of(choice) if KINDS[kind].is_whole]
        return together([*self.references(found, whole), *found])

    def outlines(self, choice: Choice) -> Iterator[Outline]:
        """Yield what is mixed of the experts of each kind."""
        named = self.names_of(choice)
        shaped: dict[str, list[Mixture]] = {
            "single": [(name,) for names in named for name in names],
            "uniform": [dict.fromkeys(names, 1 / len(names)) for names in named],
            "line": [*named],
        }
        for kind in self.mixed_kinds(choice):
            yield Outline(
                experts={name: Expert(name, task, kind) for name, task in self.experts.items()},
                mixtures=shaped[self.shape],
                ask=lambda point: self.cells_of(point, named, choice),
                points=choice.points or self.points,
                simplex=True,
                methods=sweeps_of(choice.methods or self.methods, self.name, has_base=True),
                policies=choice.batchnorm,
                ensembles=kind in self.ensembles,
            )

    def kinds_of(self, choice: Choice) -> list[str]:
        """Return the kinds wanted of those that there are at the setup."""
        wanted = self.kinds if choice.kinds is None else choice.kinds
        if unknown := [kind for kind in wanted if kind not in self.kinds]:
            raise StudyError(f"study {self.name} has no experts {unknown[0]!r}: choose of {', '.join(self.kinds)}")
        return [kind for kind in wanted if choice.setup == "pocket" or not KINDS[kind].is_whole]

    def mixed_kinds(self, choice: Choice) -> list[str]:
        """Return the kinds wanted but for models of whole families."""
        return [kind for kind in self.kinds_of(choice) if not KINDS[kind].is_whole]

    def names_of(self, choice: Choice) -> list[tuple[str, ...]]:
        """Return the experts of every mixture wanted by name."""
        found = [names for names in self.mixtures if choice.only is None or set(choice.only.split("+")) == set(names)]
        if not found:
            known = ", ".join("+".join(names) for names in self.mixtures)
            raise StudyError(f"study {self.name} has nothing of {choice.only!r}: choose one of {known}")
        return found

    def mixtures_of(self, choice: Choice) -> list[dict[str, Expert]]:
        """List the experts of every mixture wanted by name, of every kind apart, but for models of whole families."""
        kinds = self.mixed_kinds(choice)
        return [
            {name: Expert(name, self.experts[name], kind) for name in names}
            for names in self.names_of(choice)
            for kind in kinds
        ]

    def cells_of(self, point: Point, mixtures: Iterable[tuple[str, ...]], choice: Choice) -> Iterator[Cell]:
        """Yield a point on the tasks of its experts, an expert as it is on those of all its mixtures; shifted data are
        for reporting, so there are none beside split val."""
        wide, own = is_even(point), set(point.experts)
        for names in [names for names in mixtures if own <= {*names}] if point.method == "single" else [point.experts]:
            tasks = [self.experts[name] for name in names]
            family = next((one for one in self.families.values() if tasks[0] in one), ()) if wide else ()
            for task in dict.fromkeys([*tasks, *family]):
                has_shifts = self.shifts and wide and choice.split == "test"
                first = ("val",) * (self.choose and choice.split == "test")
                for split in (*first, choice.split, *(SETUPS[choice.setup].shifts(task) if has_shifts else ())):
                    yield Cell(point, task, split, self.metrics.get(task, ()))

    def references(self, cells: Sequence[Cell], whole: Sequence[str]) -> Iterator[Cell]:
        """Yield the models beside others on all that cells ask, family by family, with those of the whole family."""
        asked = {(cell.task, cell.split): cell.metrics for cell in cells}
        known = {task for family in self.families.values() for task in family}
        rest = tuple(dict.fromkeys(task for task, _ in asked if task not in known))
        for number, (name, family) in enumerate([*self.families.items(), ("", rest)]):
            models = [*self.beside]
            if name:  # those of the first family are called by their kind alone
                models += [Expert(f"{kind}-{name}" if number else kind, "+".join(family), kind) for kind in whole]
            for model in models:
                for (task, split), metrics in asked.items():
                    if task in family:
                        yield Cell(single(model), task, split, metrics)


BOXES = ("Acc@0.5", *(f"Acc@0.5 {size} of all" for size in SIZES), *(f"Acc@0.{tenths}" for tenths in (4, 6, 7, 8, 9)))
STUDIES: dict[str, UnivalStudy] = {
    "interpolation": MixtureStudy(
        name="interpolation",
        question="What do the weights between two experts know of both tasks?",
        source="arXiv 2307.16184, figures 2 and 6",
        experts=ALL_TASKS,
        mixtures=(
            ("vqa", "caption"),
            ("caption", "grounding"),
            ("entailment", "grounding"),
            ("vqa", "grounding"),
            FAMILIES["video"],
        ),
        kinds=("vanilla", "ratatouille", "joint"),
        ensembles=("vanilla",),
        families=FAMILIES,
    ),
    "averaging": MixtureStudy(
        name="averaging",
        question="Is one average of all experts better than the model they started from, on new data too?",
        source="arXiv 2307.16184, figure 3",
        experts=ALL_TASKS,
        mixtures=(FAMILIES["image"],),
        shape="uniform",
        kinds=("vanilla", "longer", "soup", "ratatouille", "fusing", "fusing-with-own", "joint"),
        ensembles=("vanilla", "ratatouille", "fusing"),
        families=FAMILIES,
        contender="ratatouille",
    ),
    "ood": MixtureStudy(
        name="ood",
        question="How do single experts of each kind fare on shifted data?",
        source="arXiv 2307.16184, table 20",
        experts=ALL_TASKS,
        mixtures=tuple((task,) for task in FAMILIES["image"]),
        shape="single",
        kinds=("vanilla", "longer", "soup", "fusing", "fusing-with-own", "ratatouille"),
    ),
    "rewarded-soups": MixtureStudy(
        name="rewarded-soups",
        question="Do mixtures of experts rewarded for small, medium and large boxes trade these off?",
        source="arXiv 2306.04488, on grounding",
        experts=dict.fromkeys(("small", "medium", "large"), "grounding"),
        mixtures=(("small", "medium", "large"),),
        points=6,
        kinds=("reward",),
        ensembles=("reward",),
        beside=(Expert("unrewarded", "grounding", "vanilla"), Expert("all-rewards", "grounding", "mixed-rewards")),
        shifts=False,
        metrics={"grounding": ("Acc@0.5", "Acc@0.5 small", "Acc@0.5 medium", "Acc@0.5 large")},
    ),
    "subsets": MixtureStudy(
        name="subsets",
        question="How does an average change with the number of experts in it?",
        source="arXiv 2203.05482 and 2212.04089, of experts on different tasks",
        experts=IMAGE_TASKS,
        mixtures=tuple(some for count in (2, 3, 4) for some in itertools.combinations(IMAGE_TASKS, count)),
        shape="uniform",
        families=FAMILIES,
    ),
    "along": MixtureStudy(
        name="along",
        question="When can experts be merged: how do they and their average change along the finetuning?",
        source="arXiv 2306.04488 and 2203.05482, along the updates",
        experts=IMAGE_TASKS,
        mixtures=(FAMILIES["image"],),
        shape="uniform",
        kinds=(*PROGRESS, "vanilla"),
        progress={**PROGRESS, "vanilla": 1.0},
        shifts=False,
    ),
    "mergeability": MixtureStudy(
        name="mergeability",
        question="Do the weights of two experts tell how well they can be merged?",
        source="arXiv 1912.05671 and 2212.04089: barriers, angles of task vectors",
        experts=ALL_TASKS,
        mixtures=(*itertools.combinations(IMAGE_TASKS, 2), FAMILIES["video"]),
        kinds=("vanilla", "ratatouille"),
        shifts=False,
    ),
    "methods": MixtureStudy(
        name="methods",
        setups=("pocket",),
        question="Which method merges four experts best, each with its values chosen on val?",
        source="each method's paper, by the comparisons of arXiv 2505.10833 and 2505.19892",
        experts=IMAGE_TASKS,
        mixtures=(FAMILIES["image"],),
        shape="uniform",
        methods=(ALL,),
        families=FAMILIES,
        choose=True,
    ),
    "plane": MixtureStudy(
        name="plane",
        question="What lies around the pretrained model and two experts, in the plane through all three?",
        source="arXiv 1802.10026, of three models with one start",
        experts=ALL_TASKS,
        mixtures=(("vqa", "caption"),),
        methods=("interpolate", plane()),
        shifts=False,
    ),
    "drawing": MixtureStudy(
        name="drawing",
        question="What lies between describing images and drawing them?",
        source="arXiv 2307.16184, of a task that it trained and did not merge",
        experts={task: task for task in ("caption", "image-generation")},
        mixtures=(("caption", "image-generation"),),
        kinds=("drawing",),
        # The pretrained model has no words for this tokenizer's codes.
        beside=(Expert("stage", "image-generation", "drawing-stage"),),
        setups=("pocket",),
    ),
    "pretraining": PretrainingStudy(
        name="pretraining",
        question="What do balance, a curriculum, more tasks and more modalities bring to pretraining?",
        source="arXiv 2307.16184, tables 2, 3, 4, 12, 16 and 17",
        comparisons=COMPARISONS,
        setups=("pocket",),
    ),
    "published": PublishedStudy(
        name="published",
        question="What do the published models score on the published data?",
        source="arXiv 2307.16184, tables 5 to 11",
        before={
            Expert(STAGE_1, "", STAGE_1): ("image",),
            START: ("image", "video"),
        },
        metrics=dict.fromkeys(("grounding", "grounding-refcoco", "grounding-refcocog"), BOXES),
        setups=("base",),
    ),
}


def study_named(name: str) -> UnivalStudy:
    """Return a study; StudyError with the names of all if there is none."""
    if name not in STUDIES:
        raise StudyError(f"no study {name!r}: choose one of {', '.join(STUDIES)}")
    return STUDIES[name]
