"""The policy on names, shapes, dtypes, integers and ties: what happens to each tensor of a merge.

`plan` looks at names, shapes and dtypes only (and at the values of integer tensors), and either gives one `Unit` per
tensor or raises with everything that is wrong at once. The streaming engine, the functions on state dicts in memory
and the live model all follow the same plan.
"""

from __future__ import annotations

import fnmatch
import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from merge.checkpoint import SHOWN, Checkpoint
from merge.errors import MergeError
from merge.formats.entry import TensorEntry

# BatchNorm's count of seen batches: the only integers that differ between experts for a good reason.
COUNTER = "num_batches_tracked"
BATCHNORM = ("running_mean", "running_var", COUNTER)

Kind = Literal["merge", "copy", "maximum"]


@dataclass(frozen=True)
class Spec:
    """What a plan needs to know of a tensor: no values. `tie` is equal for names that are one tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    tie: Hashable = None


@dataclass(frozen=True)
class Policy:
    """The user's explicit choices.

    Attributes:
        keep: globs of names left as in the first input that has them.
        drop: globs of names left out of the result.
        missing: "error", or "keep-first": a name that some input lacks is taken unmerged from the first that has it.
        dtype: dtype of the merged floating tensors; None keeps each tensor's own, which inputs must then share.
        compute_dtype: dtype of the arithmetic, float32 or float64; float64 tensors always have float64.
        batchnorm: "average" (statistics are merged like weights) or "from:<input name>".
        allow_nonfinite: accept infinities and NaNs in the result.
        extrapolate: accept coefficients outside [0, 1].
    """

    keep: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    missing: str = "error"
    dtype: torch.dtype | None = None
    compute_dtype: torch.dtype = torch.float32
    batchnorm: str = "average"
    allow_nonfinite: bool = False
    extrapolate: bool = False


@dataclass(frozen=True)
class Unit:
    """One tensor of the result: its name (and the names tied to it), what is done, and from which inputs."""

    names: tuple[str, ...]
    kind: Kind
    sources: tuple[int, ...]
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def specs(tensors: Mapping[str, Tensor]) -> Mapping[str, Spec | TensorEntry]:
    """Dtypes, shapes and ties of a state dict, without touching a value of a lazy one."""
    if isinstance(tensors, Checkpoint):
        return tensors.entries
    return {name: Spec(value.dtype, tuple(value.shape), _memory_tie(value)) for name, value in tensors.items()}


def _memory_tie(value: Tensor) -> Hashable:
    if value.numel() == 0 or value.device.type == "meta":
        return None
    return (str(value.device), value.data_ptr(), value.dtype, tuple(value.shape), value.stride())


def plan(inputs: Sequence[Mapping[str, Tensor]], labels: Sequence[str], policy: Policy) -> list[Unit]:
    """One unit per tensor of the result, in the order of the first input.

    `labels` name the inputs in messages. Raises MergeError listing every difference in names, shapes and dtypes and
    every integer conflict, with the options that resolve them.
    """
    described = [specs(tensors) for tensors in inputs]
    _check_policy(policy)
    statistics_from = None if policy.batchnorm == "average" else _named_input(policy.batchnorm, labels)
    names = _names(described, policy)
    problems = _name_problems(described, labels, names, policy)
    units: list[Unit] = []
    for group in _tied_groups(described, inputs, names, policy.keep):
        unit, problem = _unit(group, described, inputs, labels, policy, statistics_from)
        if problem:
            problems.append(problem)
        elif unit:
            units.append(unit)
    if problems:
        raise MergeError("; ".join(problems[:SHOWN]) + _and_more(len(problems) - SHOWN, "problems"))
    return units


def by_name(units: Sequence[Unit], inputs: Sequence[Mapping[str, Tensor]]) -> dict[str, Unit]:
    """Every name of the result with its unit, in the order in which the inputs list the names."""
    found = {name: unit for unit in units for name in unit.names}
    return {name: found[name] for name in dict.fromkeys(n for tensors in inputs for n in tensors) if name in found}


# -- names -----------------------------------------------------------------------------------------------------------


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a tensor's name fits one of the globs (`*` crosses dots, case counts)."""
    return bool(patterns) and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _names(described: Sequence[Mapping[str, object]], policy: Policy) -> list[str]:
    names = list(dict.fromkeys(name for tensors in described for name in tensors))
    for option, patterns in (("--keep", policy.keep), ("--drop", policy.drop)):
        for pattern in patterns:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                raise MergeError(f"{option} {pattern!r} matches no tensor; names look like {', '.join(names[:3])}")
    return [name for name in names if not matches(name, policy.drop)]


def _check_policy(policy: Policy) -> None:
    if policy.missing not in ("error", "keep-first"):
        raise MergeError(f"missing={policy.missing!r}: must be 'error' or 'keep-first'")
    if policy.compute_dtype not in (torch.float32, torch.float64):
        raise MergeError(f"compute_dtype {_short(policy.compute_dtype)}: must be float32 or float64")


def _name_problems(
    described: Sequence[Mapping[str, object]], labels: Sequence[str], names: Sequence[str], policy: Policy
) -> list[str]:
    if policy.missing == "keep-first":
        return []
    wanted = [name for name in names if not matches(name, policy.keep)]
    problems: list[str] = []
    for tensors, label in zip(described, labels, strict=True):
        lacking = [name for name in wanted if name not in tensors]
        if lacking:
            problems.append(f"{label} lacks {_listed(lacking)}")
    if problems:
        problems.append("leave them as they are with --keep, leave them out with --drop, or pass --missing keep-first")
    return problems


def _listed(names: Sequence[str]) -> str:
    """Up to 20 names, then counts by module."""
    text = f"{len(names)} tensor{'s' * (len(names) != 1)}: {', '.join(names[:SHOWN])}"
    if len(names) <= SHOWN:
        return text
    groups = Counter(".".join(name.split(".")[:2]) for name in names[SHOWN:])
    return text + " and " + ", ".join(f"{count} in {prefix}" for prefix, count in sorted(groups.items())[:SHOWN])


def _and_more(count: int, what: str) -> str:
    return f"; and {count} more {what}" if count > 0 else ""


# -- ties ------------------------------------------------------------------------------------------------------------


def _tied_groups(
    described: Sequence[Mapping[str, Spec | TensorEntry]],
    inputs: Sequence[Mapping[str, Tensor]],
    names: Sequence[str],
    keep: Sequence[str],
) -> list[tuple[str, ...]]:
    """Names that are one tensor in the first input that has them, and that share one fate.

    Such a tie survives where every other input that has the names ties them too or holds equal values.
    """
    groups: dict[Hashable, list[str]] = {}
    for name in names:
        holders = tuple(i for i, tensors in enumerate(described) if name in tensors)
        tie = described[holders[0]][name].tie
        groups.setdefault(name if tie is None else (tie, holders, matches(name, keep)), []).append(name)
    result: list[tuple[str, ...]] = []
    for members in groups.values():
        result.extend(_split_untied(tuple(members), described, inputs))
    return result


def _split_untied(
    members: tuple[str, ...],
    described: Sequence[Mapping[str, Spec | TensorEntry]],
    inputs: Sequence[Mapping[str, Tensor]],
) -> list[tuple[str, ...]]:
    if len(members) == 1:
        return [members]
    for index, tensors in enumerate(described):
        present = [name for name in members if name in tensors]
        if len({tensors[name].tie for name in present}) == 1 and tensors[present[0]].tie is not None:
            continue
        first = inputs[index][present[0]] if present else None
        if first is not None and any(not torch.equal(first, inputs[index][name]) for name in present[1:]):
            return [(name,) for name in members]  # this input unties them on purpose: so does the result
    return [members]


# -- one tensor ------------------------------------------------------------------------------------------------------


def _unit(
    names: tuple[str, ...],
    described: Sequence[Mapping[str, Spec | TensorEntry]],
    inputs: Sequence[Mapping[str, Tensor]],
    labels: Sequence[str],
    policy: Policy,
    statistics_from: int | None,
) -> tuple[Unit | None, str]:
    """The unit of one tied group, or the problem that prevents it."""
    name = names[0]
    holders = [i for i, tensors in enumerate(described) if name in tensors]
    first = described[holders[0]][name]
    copied = Unit(names, "copy", (holders[0],), first.dtype, first.shape)
    if matches(name, policy.keep):
        return copied, ""
    if len(holders) < len(inputs):
        return (copied, "") if policy.missing == "keep-first" else (None, "")
    problem = _conflict(name, [tensors[name] for tensors in described], labels, policy)
    if problem:
        return None, problem
    if statistics_from is not None and name.endswith(BATCHNORM):
        return Unit(names, "copy", (statistics_from,), first.dtype, first.shape), ""
    if not (first.dtype.is_floating_point or first.dtype.is_complex):
        return _integer_unit(copied, inputs, labels)
    dtype = first.dtype if policy.dtype is None or first.dtype.is_complex else policy.dtype
    return Unit(names, "merge", tuple(range(len(inputs))), dtype, first.shape), ""


def _conflict(name: str, found: Sequence[Spec | TensorEntry], labels: Sequence[str], policy: Policy) -> str:
    """What keeps a tensor from being merged, told with both values; empty where nothing does."""
    first = found[0]
    for spec, label in zip(found[1:], labels[1:], strict=True):
        if spec.shape != first.shape:
            return (
                f"{name} has shape {list(first.shape)} in {labels[0]} and {list(spec.shape)} in {label}: "
                "--keep or --drop it"
            )
        if spec.dtype != first.dtype:
            floats = spec.dtype.is_floating_point and first.dtype.is_floating_point
            if not floats or policy.dtype is None:
                advice = "choose the result's with --dtype" if floats else "--keep or --drop it"
                return f"{name} is {_short(first.dtype)} in {labels[0]} and {_short(spec.dtype)} in {label}: {advice}"
    return ""


def _integer_unit(
    copied: Unit, inputs: Sequence[Mapping[str, Tensor]], labels: Sequence[str]
) -> tuple[Unit | None, str]:
    """Integers are never arithmetic: equal ones are kept, BatchNorm counters take the maximum."""
    name = copied.name
    if name.endswith(COUNTER):
        return Unit(copied.names, "maximum", tuple(range(len(inputs))), copied.dtype, copied.shape), ""
    first = inputs[0][name]
    for tensors, label in zip(inputs[1:], labels[1:], strict=True):
        if not torch.equal(first, tensors[name]):
            return None, (
                f"{name} is {_short(copied.dtype)} and differs between {labels[0]} and {label}: integers are never "
                "merged; --keep or --drop it"
            )
    return copied, ""


def _named_input(batchnorm: str, labels: Sequence[str]) -> int:
    kind, _, name = batchnorm.partition(":")
    if kind != "from" or name not in labels:
        raise MergeError(f"batchnorm={batchnorm!r}: must be 'average' or 'from:' and one of {', '.join(labels)}")
    return list(labels).index(name)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# -- coefficients by module ------------------------------------------------------------------------------------------


def is_rules(value: object) -> bool:
    """Whether a parameter's value is given by module: a mapping from globs with a "*"."""
    return isinstance(value, Mapping) and "*" in value


def resolve(rules: Mapping[str, float], names: Sequence[str]) -> dict[str, tuple[str, float]]:
    """For every name the first glob of `rules` that fits it, and its value.

    Raises MergeError where "*" is absent or a glob decides no name (a typing mistake, or hidden by an earlier one).
    """
    if "*" not in rules:
        raise MergeError(f"coefficients by module need a rule '*' for the rest; given are {', '.join(rules)}")
    resolved = {name: next((glob, rules[glob]) for glob in rules if fnmatch.fnmatchcase(name, glob)) for name in names}
    used = {glob for glob, _ in resolved.values()}
    idle = [glob for glob in rules if glob not in used and glob != "*"]
    if idle:
        shadow = any(fnmatch.fnmatchcase(name, idle[0]) for name in names)
        why = "an earlier rule decides all it matches" if shadow else f"names look like {', '.join(names[:3])}"
        raise MergeError(f"coefficient rule {idle[0]!r} decides no tensor: {why}")
    return resolved
