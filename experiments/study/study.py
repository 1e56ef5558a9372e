"""The contract with a model of any kind: experts, tasks with their scoring functions, mixtures, methods, as data.

>>> Study("digits", lambda: None, {"upright": "u.pt", "turned": "t.pt"}, {"upright": len, "turned": len}).all_mixtures
[('upright', 'turned')]
"""

# What users give is checked, whatever its type is said to be.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

from experiments.errors import StudyError
from experiments.study.methods import Sweep, sweeps_of
from experiments.study.points import POLICIES, PRETRAINED

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from merge import Checkpoint, Input

    Source: TypeAlias = "str | Path | Input | Checkpoint | Mapping[str, Tensor] | nn.Module"

Mixture = tuple[str, ...] | Mapping[str, float]


@dataclass(frozen=True)
class Task:
    """What a model is asked, and how its answers are scored.

    Attributes:
        score: `score(model, split)` -> one number an example (n,) (array, tensor or list), or one number, or either by
            name of a metric. The model is in evaluation mode, on the device of the run, and no gradients are kept.
        expert: whose own task it is; by default the expert's of the same name, if there is one.
        metric: what the numbers are, where the function does not name them; of those it names, the one to show.
        unit: of the metric, or of each by name; such as "nats", empty for shares of 1.
        higher_is_better: whether larger numbers are better, or for each metric by name.
        chance: what guessing scores, by the metric to show, or by split; tables set it beside the scores.
        inputs: batches that the model takes, or a function that returns them, to measure BatchNorm statistics on.
        show: `show(model, split, index)` -> what a page shows of an example and the model's answer to it: text, a
            image (a Path, or an array (H, W) or (H, W, 3)), a table (a list of lines), or a mapping of these by
            title, where prompt, text, reference, image and table belong together. IndexError behind the last example.
    """

    score: Callable[..., Any]
    _: KW_ONLY
    expert: str = ""
    metric: str = "score"
    unit: str | Mapping[str, str] = ""
    higher_is_better: bool | Mapping[str, bool] = True
    chance: float | Mapping[str, float] | None = None
    inputs: Iterable[Any] | Callable[[], Iterable[Any]] | None = None
    show: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if not callable(self.score):
            raise StudyError(f"score is a {type(self.score).__name__}: give a function of a model and a split")
        for name, kind in (
            ("expert", str),
            ("metric", str),
            ("unit", (str, Mapping)),
            ("higher_is_better", (bool, Mapping)),
        ):
            if not isinstance(getattr(self, name), kind):
                raise StudyError(
                    f"{name}={getattr(self, name)!r:.60} of a task is a {type(getattr(self, name)).__name__}"
                )

        levels = [*self.chance.values()] if isinstance(self.chance, Mapping) else [self.chance]
        numbers = [isinstance(one, (int, float)) and math.isfinite(one) for one in levels if one is not None]
        if not all(numbers) or (isinstance(self.chance, Mapping) and None in levels):
            raise StudyError(f"chance={self.chance!r:.60} of a task: give a number, or numbers by split")

    def chance_on(self, splits: Iterable[str]) -> dict[str, float]:
        """Return what guessing scores on some splits, where that is known."""
        if isinstance(self.chance, Mapping):
            return {split: float(self.chance[split]) for split in splits if split in self.chance}
        return {} if self.chance is None else {split: float(self.chance) for split in splits}

    def unit_of(self, metric: str) -> str:
        """Return the unit of a metric."""
        return self.unit.get(metric, "") if isinstance(self.unit, Mapping) else self.unit

    def rises(self, metric: str) -> bool:
        """Tell whether larger numbers of a metric are better."""
        better = self.higher_is_better
        return better.get(metric, True) if isinstance(better, Mapping) else better


@dataclass(frozen=True, eq=False)
class Study:
    """Experts of one model, the tasks that they and the models between them are asked, and which models those are.

    Attributes:
        name: of the study, in rows and pages.
        model: a function without arguments that returns the module, or the module.
        experts: by name a path, Hub id, open checkpoint, state dict or module, or such by training seed.
        tasks: by name; a scoring function alone stands for `Task(function)`.
        pretrained: what the experts were finetuned from: the base of methods that take one, and a model of its own.
        splits: `val` is for choosing, `test` for reporting, any other is shifted data.
        mixtures: names ("a+b", or a tuple) or shares by name; by default every pair, and all where there are three or
            more. A pair is a line of points; of three or more there is the one of equal shares, or the `simplex`.
        methods: keys of METHODS, or `(name, {parameter: [values]})`, which is tried at every combination of the values;
            of a parameter that has no default the method's usual value is taken.
            "all" is every method, at the values that its entry of METHODS calls worth trying.
        choose: whether every point is evaluated on `val`, and then on other splits only those that are best there: of
            each mixture, method and BatchNorm policy one. All seeds choose together.
        points: on the line of a pair, the ends included.
        simplex: whether mixtures of three or more have as many points along every edge, and the lattice inside.
        seeds: those of the experts to use; by default all there are.
        batchnorm: policies of merged weights: average, from:<expert>, recalibrate:mixture, recalibrate:task, or all.
        ensembles: whether models that answer with the mean of the experts' outputs stand beside every mixture; or
            `ensemble(models, shares)` -> such a module.
        question, source: what the study asks and where the idea comes from, for pages.
        version: to be raised when scoring or data change: rows of another version are evaluated again.

    Raises StudyError for names that do not fit together, before anything is opened.
    """

    name: str
    model: Callable[[], nn.Module] | nn.Module
    experts: Mapping[str, Source | Mapping[int, Source]]
    tasks: Mapping[str, Task]
    _: KW_ONLY
    pretrained: Source | Mapping[int, Source] | None = None
    splits: Sequence[str] = ("val", "test")
    mixtures: Sequence[str | Mixture] | None = None
    methods: Sequence[str | Sweep] = ("interpolate",)
    choose: bool = False
    points: int = 11
    seeds: Sequence[int] | None = None
    batchnorm: Sequence[str] = ("average",)
    ensembles: bool | Callable[..., nn.Module] = False
    simplex: bool = False
    question: str = ""
    source: str = ""
    version: str = ""

    def __post_init__(self) -> None:
        """Complete what was left out, and check that names and values fit."""
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        for name in ("name", "question", "source", "version"):
            if not isinstance(getattr(self, name), str):
                raise self.wrong(name, "must be text")
        if not self.name:
            raise self.wrong("name", "a study needs one")
        if not callable(self.model) and not hasattr(self.model, "state_dict"):
            raise self.wrong("model", "give a function that returns the module, or the module")
        for name in ("experts", "tasks"):
            if not isinstance(getattr(self, name), Mapping) or not getattr(self, name):
                raise self.wrong(name, "give at least one by name")
        for name in self.experts:
            if not isinstance(name, str) or not name or "+" in name or name == PRETRAINED:
                raise StudyError(f"study {self.name}: an expert cannot be called {name!r}: '+' joins names of mixtures")
        put("tasks", {str(name): task if isinstance(task, Task) else Task(task) for name, task in self.tasks.items()})
        for name, task in self.tasks.items():
            if not name or "+" in name:
                raise StudyError(f"study {self.name}: a task cannot be called {name!r}: '+' joins names")
            if task.expert and task.expert not in self.experts:
                raise self.unknown(f"task {name!r} is of expert", task.expert, self.experts)
        put("splits", self._texts("splits"))
        if self.mixtures is not None:
            given = (self.mixtures,) if isinstance(self.mixtures, (str, Mapping)) else self.mixtures
            put("mixtures", tuple(map(self._mixture, given)))
        put("methods", sweeps_of(self.methods, self.name, has_base=self.pretrained is not None))
        if isinstance(self.seeds, int):
            put("seeds", (self.seeds,))
        assert self.all_seeds
        put("batchnorm", self._texts("batchnorm"))
        if self.choose and "val" not in self.splits:
            raise self.wrong("choose", "points are chosen on a split val: give one")
        if isinstance(self.points, bool) or not isinstance(self.points, int) or self.points < 2:
            raise self.wrong("points", "give 2 or more, the ends count")
        self._check_policies()

    def wrong(self, name: str, why: str) -> StudyError:
        """Return the error about the value of a field."""
        return StudyError(f"study {self.name}: {name}={getattr(self, name)!r:.80}: {why}")

    def unknown(self, what: str, name: object, known: Iterable[str]) -> StudyError:
        """Return the error about a name that is none of those known."""
        return StudyError(f"study {self.name}: {what} {name!r}: choose of {', '.join(map(str, known))}")

    def owner(self, task: str) -> str:
        """Return the expert whose own task it is; "" where it is nobody's."""
        named = self.tasks[task].expert
        return named or (task if task in self.experts else "")

    def own_tasks(self, names: Iterable[str]) -> list[str]:
        """Return the tasks that are some experts' own."""
        owners = set(names)
        return [task for task in self.tasks if self.owner(task) in owners]

    def source_of(self, name: str, seed: int) -> Source:
        """Return the weights of an expert, or of the pretrained model, of a seed."""
        given: Any = self.pretrained if name == PRETRAINED else self.experts[name]
        if not is_by_seed(given):
            return given
        if seed not in given:
            raise StudyError(f"study {self.name}: {name} has no seed {seed}: choose of {', '.join(map(str, given))}")
        return given[seed]

    @property
    def all_mixtures(self) -> list[Mixture]:
        """Return the mixtures: those given, or every pair, and all experts where there are three or more."""
        if self.mixtures is not None:
            return [one for one in self.mixtures if not isinstance(one, str)]
        names = tuple(self.experts)
        return [*itertools.combinations(names, 2), *([names] if len(names) > 2 else [])]

    @property
    def all_methods(self) -> list[Sweep]:
        """Return the methods, each with the values to try of its parameters."""
        return [(one, {}) if isinstance(one, str) else one for one in self.methods]

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """Return the training seeds: those given, or all that every expert has, or 0."""
        there = [tuple(given) for given in (*self.experts.values(), self.pretrained) if is_by_seed(given)]
        common = [seed for seed in (there[0] if there else ()) if all(seed in own for own in there)]
        if there and not common:
            raise StudyError(f"study {self.name}: no seed that all experts have: {'; '.join(map(str, there))}")
        for seed in self.seeds or ():
            if isinstance(seed, bool) or not isinstance(seed, int):
                raise self.wrong("seeds", "give whole numbers")
            if there and seed not in common:
                raise self.unknown("no experts of seed", seed, map(str, common))
        return tuple(self.seeds or common or (0,))

    def _mixture(self, given: str | Mixture) -> Mixture:
        mixture: Mixture
        if isinstance(given, Mapping):
            mixture = {name: float(share) for name, share in given.items()}
            if abs(sum(mixture.values()) - 1) > 1e-6 or min(mixture.values(), default=-1) < 0:
                raise StudyError(f"study {self.name}: mixture {dict(given)}: shares are 0 or more, of sum 1")
        else:
            mixture = tuple(given.split("+") if isinstance(given, str) else given)
        for name in mixture:
            if name not in self.experts:
                raise self.unknown("no expert", name, self.experts)
        if len(set(mixture)) < max(2, len(mixture)):
            raise StudyError(f"study {self.name}: mixture {given!r}: name two experts or more, each once")
        return mixture

    def _texts(self, name: str) -> tuple[str, ...]:
        given = getattr(self, name)
        listed = (given,) if isinstance(given, str) else tuple(given)
        if not listed or not all(isinstance(one, str) and one for one in listed) or len(set(listed)) < len(listed):
            raise self.wrong(name, "give names, each once")
        return listed

    def _check_policies(self) -> None:
        for policy in self.batchnorm:
            if policy not in (*POLICIES, "all") and policy.removeprefix("from:") not in self.experts:
                raise self.unknown("no BatchNorm policy", policy, (*POLICIES, "from:EXPERT", "all"))
            if policy in ("all", *POLICIES[1:]) and (lacking := [n for n, t in self.tasks.items() if t.inputs is None]):
                raise StudyError(
                    f"study {self.name}: BatchNorm {policy} is measured on inputs of tasks, and {lacking[0]} has none: "
                    "give Task(..., inputs=batches)"
                )


def is_by_seed(given: Any) -> TypeGuard[Mapping[int, Any]]:
    """Tell whether an expert is given by training seed; a state dict is by names."""
    return isinstance(given, Mapping) and bool(given) and all(isinstance(seed, int) for seed in given)
