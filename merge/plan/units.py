"""The policy on names, shapes, dtypes, integers and ties: what happens to each tensor of a merge.

`plan` looks at names, shapes and dtypes only (and at the values of integer tensors), and either gives one `Unit` per
tensor or raises with everything that is wrong at once. The streaming engine, the functions on state dicts in memory
and the live model all follow the same plan.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from merge.checkpoint.formats.tensors import Spec, TensorEntry
from merge.checkpoint.open import SHOWN, Checkpoint, specs
from merge.errors import MergeError
from merge.plan.policy import NOBODY, Origin, Policy, Slice, check_policy, origins, read_slices, slices_of
from merge.plan.rows import VOCABULARY, Assembly, Vocabulary, by_position, by_token, patches_for, rows_differ

# BatchNorm's count of seen batches: the only integers that differ between experts for a good reason.
COUNTER = "num_batches_tracked"
BATCHNORM = ("running_mean", "running_var", COUNTER)
# fairseq notes the version of a module's layout as a floating tensor: it says what the others mean.
_VERSION = re.compile(r"(.*\.)?version")

Kind = Literal["merge", "copy", "maximum"]


@dataclass(frozen=True)
class Unit:
    """One tensor of the result: its name (and the names tied to it), what is done, and from which inputs.

    Attributes:
        sources: inputs in the order in which the method takes them; the base again for an expert that counts as it.
        why: what made it other than merged or copied for its dtype, in two or three words.
        assembly: how its parts come together where not all are merged; None: as a whole.
    """

    names: tuple[str, ...]
    kind: Kind
    sources: tuple[int, ...]
    dtype: torch.dtype
    shape: tuple[int, ...]
    why: str = field(default="", compare=False)
    assembly: Assembly | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def plan(
    inputs: Sequence[Mapping[str, Tensor]], labels: Sequence[str], policy: Policy, *, has_base: bool = False
) -> list[Unit]:
    """One unit per tensor of the result, in the order of the first input.

    `labels` name the inputs in messages; with `has_base` the first is the others' ancestor. Raises MergeError listing
    every difference in names, shapes and dtypes and every integer conflict, with the options that resolve them.
    """
    check_policy(policy, has_base)
    described = [specs(tensors) for tensors in inputs]
    statistics_from = None if policy.batchnorm == "average" else _named_input(policy.batchnorm, labels)
    decided = origins(described, labels, policy)
    names = [name for name in dict.fromkeys(n for tensors in described for n in tensors) if _is_wanted(name, decided)]
    slices = read_slices(policy, labels, names)
    vocabulary = by_token(_dictionaries(inputs), labels)
    case = _Case(inputs, described, labels, policy, decided, slices, vocabulary, statistics_from)
    problems = _name_problems(case, names, has_base)
    units: list[Unit] = []
    for group in _tied_groups(case, names):
        unit, problem = _unit(group, case)
        if problem:
            problems.append(problem)
        elif unit:
            units.append(unit)
    problems += _row_problems(units, described)
    if problems:
        problems = list(dict.fromkeys(problems))
        raise MergeError("; ".join(problems[:SHOWN]) + _and_more(len(problems) - SHOWN, "problems"))
    dictionary(inputs, labels, units)
    return units


@dataclass(frozen=True)
class _Case:
    """What the fate of a tensor depends on."""

    inputs: Sequence[Mapping[str, Tensor]]
    described: Sequence[Mapping[str, Spec | TensorEntry]]
    labels: Sequence[str]
    policy: Policy
    decided: Mapping[str, Origin]
    slices: Sequence[Slice]
    vocabulary: Vocabulary | None
    statistics_from: int | None


def by_name(units: Sequence[Unit], inputs: Sequence[Mapping[str, Tensor]]) -> dict[str, Unit]:
    """Every name of the result with its unit, in the order in which the inputs list the names."""
    found = {name: unit for unit in units for name in unit.names}
    return {name: found[name] for name in dict.fromkeys(n for tensors in inputs for n in tensors) if name in found}


def dictionary(
    inputs: Sequence[Mapping[str, Tensor]], labels: Sequence[str], units: Sequence[Unit]
) -> Mapping[str, int] | None:
    """The row of every token in the result, where inputs have dictionaries; None where none has.

    Raises MergeError where the result's vocabulary tensors would not all have the rows of one dictionary.
    """
    given = _dictionaries(inputs)
    merged = by_token(given, labels)
    if merged is None:
        return next((item for item in given if item is not None), None)
    found: dict[int, tuple[Unit, Mapping[str, int]]] = {}
    for unit in units:
        tokens = given[unit.sources[0]] if unit.assembly is None else merged.tokens
        if VOCABULARY.fullmatch(unit.name) and tokens is not None and unit.shape[:1] == (len(tokens),):
            found.setdefault(-1 if unit.assembly else unit.sources[0], (unit, tokens))
    if len(found) > 1:
        parts = [f"{unit.name} has {len(tokens)} rows" for unit, tokens in found.values()]
        raise MergeError(f"{' and '.join(parts)}, of different dictionaries: --keep, --pick or merge all of them")
    return next((tokens for _, tokens in found.values()), given[0])


def _dictionaries(inputs: Sequence[Mapping[str, Tensor]]) -> list[Mapping[str, int] | None]:
    return [tensors.tokens if isinstance(tensors, Checkpoint) else None for tensors in inputs]


# -- names -----------------------------------------------------------------------------------------------------------


def _is_wanted(name: str, decided: Mapping[str, Origin]) -> bool:
    return name not in decided or decided[name].index != NOBODY


def _name_problems(case: _Case, names: Sequence[str], has_base: bool) -> list[str]:
    if case.policy.missing in ("keep-first", "union"):
        return []
    zero = case.policy.missing == "zero-delta"
    wanted = [name for name in names if name not in case.decided]
    problems: list[str] = []
    for tensors, label in list(zip(case.described, case.labels, strict=True))[: 1 if zero else None]:
        lacking = [name for name in wanted if name not in tensors]
        if lacking:
            problems.append(f"{label} lacks {_listed(lacking)}")
    if problems:
        least = "" if zero else ", or pass --missing keep-first"
        problems.append(f"leave them as they are with --keep, leave them out with --drop{least}")
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


def _tied_groups(case: _Case, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Names that are one tensor in the first input that has them, and that share one fate.

    Such a tie survives where every other input that has the names ties them too or holds equal values; what comes from
    one input alone is tied as it is there.
    """
    groups: dict[Hashable, list[str]] = {}
    for name in names:
        origin = case.decided.get(name)
        holders = (origin.index,) if origin else tuple(i for i, tensors in enumerate(case.described) if name in tensors)
        tie = case.described[holders[0]][name].tie
        groups.setdefault(name if tie is None else (tie, holders, origin is not None), []).append(name)
    result: list[tuple[str, ...]] = []
    for members in groups.values():
        alone = members[0] in case.decided
        result.extend([tuple(members)] if alone else _split_untied(tuple(members), case.described, case.inputs))
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


def _unit(names: tuple[str, ...], case: _Case) -> tuple[Unit | None, str]:
    """The unit of one tied group, or the problem that prevents it."""
    name = names[0]
    origin = case.decided.get(name)
    slices = slices_of(name, case.slices) if case.slices else []
    holders = [i for i, tensors in enumerate(case.described) if name in tensors]
    first = case.described[origin.index if origin else holders[0]][name]
    if origin:
        problem = f"--slice {slices[0].rule!r}: {name} is {origin.why}, as a whole" if slices else ""
        return Unit(names, "copy", (origin.index,), first.dtype, first.shape, origin.why), problem
    sources, why = tuple(range(len(case.inputs))), ""
    if len(holders) < len(sources):
        sources, why = _present(holders, case), f"missing: {case.policy.missing}"
        if not sources:
            return None, ""  # its name is a problem already
        if len(sources) == 1:
            problem = f"--slice {slices[0].rule!r}: only {case.labels[sources[0]]} decides {name}" if slices else ""
            return Unit(names, "copy", sources, first.dtype, first.shape, why), problem
    if case.statistics_from is not None and name.endswith(BATCHNORM) and not slices:
        whose = case.statistics_from if case.statistics_from in holders else sources[0]
        problem = _conflict(name, sources, case)
        return Unit(names, "copy", (whose,), first.dtype, first.shape, case.policy.batchnorm), problem
    vocabulary, problem = _rows(name, sources, case) if not slices else (None, "")
    problem = problem or _conflict(name, sources, case, rows=vocabulary is not None)
    if problem:
        return None, problem
    shape, assembly = first.shape, None
    if vocabulary is not None:
        shape = (vocabulary.rows.shape[1], *first.shape[1:])
        assembly, why = vocabulary.assembly(_rows_policy(case)), "by row"
    if slices:
        patches, problem = patches_for(name, slices, sources, shape)
        assembly, why = Assembly(patches=patches), "sliced"
        if problem:
            return None, problem
    if not (first.dtype.is_floating_point or first.dtype.is_complex) or _is_version(name, first):
        return _integer_unit(Unit(names, "copy", sources, first.dtype, shape, why, assembly), case)
    dtype = first.dtype if case.policy.dtype is None or first.dtype.is_complex else case.policy.dtype
    return Unit(names, "merge", sources, dtype, shape, why, assembly), ""


def _present(holders: Sequence[int], case: _Case) -> tuple[int, ...]:
    """The inputs that a name is taken from where some lack it; none where that is a problem."""
    if case.policy.missing == "keep-first":
        return (holders[0],)
    if case.policy.missing == "union":
        return tuple(holders)
    if case.policy.missing == "zero-delta" and holders[0] == 0:
        return (
            tuple(index if index in holders else 0 for index in range(len(case.inputs))) if len(holders) > 1 else (0,)
        )
    return ()


def _is_version(name: str, spec: Spec | TensorEntry) -> bool:
    return name.endswith("version") and math.prod(spec.shape) == 1 and bool(_VERSION.fullmatch(name))


def _conflict(name: str, sources: Sequence[int], case: _Case, *, rows: bool = False) -> str:
    """What keeps a tensor from being merged, told with both values; empty where nothing does."""
    first, label = case.described[sources[0]][name], case.labels[sources[0]]
    for index in sources[1:]:
        spec, other = case.described[index][name], case.labels[index]
        if spec.shape != first.shape and not rows:
            advice = "--keep or --drop it"
            if VOCABULARY.fullmatch(name) and rows_differ([first.shape, spec.shape]):
                advice = "--keep or --drop it, or merge row by row with --vocab-rows"
            return f"{name} has shape {list(first.shape)} in {label} and {list(spec.shape)} in {other}: {advice}"
        if spec.dtype != first.dtype:
            floats = spec.dtype.is_floating_point and first.dtype.is_floating_point
            if not floats or case.policy.dtype is None:
                advice = "choose the result's with --dtype" if floats else "--keep or --drop it"
                return f"{name} is {_short(first.dtype)} in {label} and {_short(spec.dtype)} in {other}: {advice}"
    return ""


def _integer_unit(copied: Unit, case: _Case) -> tuple[Unit | None, str]:
    """Integers are never arithmetic: equal ones are kept, BatchNorm counters take the maximum."""
    name = copied.name
    if name.endswith(COUNTER) and copied.assembly is None:
        return replace(copied, kind="maximum"), ""
    tensors = [case.inputs[index][name] for index in copied.sources]
    if copied.assembly is not None and copied.assembly.put is not None:
        return None, f"{name} is {_short(copied.dtype)} and has rows that differ: --keep or --drop it"
    compared = [_without_patches(tensor, copied.assembly) for tensor in tensors]
    for index, tensor in zip(copied.sources[1:], compared[1:], strict=True):
        if not torch.equal(compared[0], tensor):
            return None, (
                f"{name} is {_short(copied.dtype)} and differs between {case.labels[copied.sources[0]]} and "
                f"{case.labels[index]}: {'a version' if copied.dtype.is_floating_point else 'integers'} "
                f"{'is' if copied.dtype.is_floating_point else 'are'} never merged; --keep or --drop it"
            )
    return copied if copied.assembly else replace(copied, sources=copied.sources[:1]), ""


def _without_patches(tensor: Tensor, assembly: Assembly | None) -> Tensor:
    """The tensor with zeros where slices come from one input."""
    for patch in assembly.patches if assembly else ():
        tensor = tensor.index_fill(patch.axis, patch.put, 0)
    return tensor


def _rows_policy(case: _Case) -> str:
    """What happens to rows that some lack: told for rows, or for all that is missing."""
    by_name = {"keep-first": "keep-first", "union": "keep-first", "zero-delta": "zero-delta"}
    return by_name.get(case.policy.missing, "error") if case.policy.vocab_rows == "error" else case.policy.vocab_rows


def _rows(name: str, sources: Sequence[int], case: _Case) -> tuple[Vocabulary | None, str]:
    """The rows of a vocabulary tensor where they differ between the inputs, or why they cannot be matched."""
    if case.vocabulary is None and case.policy.vocab_rows == "error":
        return None, ""
    shapes = [case.described[index][name].shape for index in sources]
    if not VOCABULARY.fullmatch(name) or len({shape[1:] for shape in shapes}) > 1:
        return None, ""
    found = None if case.vocabulary is None else case.vocabulary.among(sources)
    if found is not None and found.fits(shapes):
        if bool((found.rows < 0).all(0).any()):
            return None, f"{name}: no input that has it has the rows of all tokens; --keep, --drop or --pick it"
        if _rows_policy(case) == "error" and bool((found.rows < 0).any()):
            lacking = found.told([case.labels[index] for index in sources])
            return None, f"the dictionaries differ: {lacking}; keep such rows with --vocab-rows keep-first"
        return found, ""
    if found is not None or not rows_differ(shapes) or case.policy.vocab_rows == "error":
        return None, ""
    return by_position([shape[0] for shape in shapes]), ""


def _row_problems(units: Sequence[Unit], described: Sequence[Mapping[str, Spec | TensorEntry]]) -> list[str]:
    """Vocabulary tensors that differ in other rows than the first: not all can be matched by position."""
    counts: dict[tuple[int, ...], str] = {}
    for unit in units:
        if unit.assembly is not None and unit.assembly.put is not None:
            counts.setdefault(tuple(described[index][unit.name].shape[0] for index in unit.sources), unit.name)
    if len(counts) < 2:
        return []
    told = ", ".join(f"{name} has {', '.join(map(str, rows))}" for rows, name in counts.items())
    return [f"rows differ otherwise: {told}; --keep or --drop the one that is no vocabulary"]


def _named_input(batchnorm: str, labels: Sequence[str]) -> int:
    kind, _, name = batchnorm.partition(":")
    if kind != "from" or name not in labels:
        raise MergeError(f"batchnorm={batchnorm!r}: must be 'average' or 'from:' and one of {', '.join(labels)}")
    return list(labels).index(name)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
