"""Units: what happens to each tensor of a merge, by the policy on names, shapes, dtypes, integers and ties.

`plan` looks at names, shapes and dtypes only (and at the values of integer tensors), and either gives one `Unit` per
tensor or raises with everything that is wrong at once. The streaming engine, the functions on state dicts in memory
and the live model all follow the same units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from merge.checkpoint.formats.elements import Element
from merge.checkpoint.formats.format import Specs
from merge.checkpoint.open import SHOWN, Checkpoint
from merge.checkpoint.scaled import stated
from merge.checkpoint.source import StateDict
from merge.errors import MergeError
from merge.plan.checks import (
    COUNTERS,
    Case,
    conflict,
    equal,
    integer_problem,
    joined,
    name_problems,
    never_merged,
    row_problems,
    rows_of,
    rows_policy,
)
from merge.plan.findings import Facts, Finding, accepted, examine, refuse, warn
from merge.plan.findings.indices import index_origins
from merge.plan.policy import (
    NOBODY,
    Origin,
    Policy,
    check_policy,
    dtype_named,
    matches,
    origins,
    policy_of,
    read_slices,
    statistics_source,
)
from merge.plan.rows import VOCABULARY, Assembly, by_token, patches_for

if TYPE_CHECKING:
    import torch

BATCHNORM = ("running_mean", "running_var", "num_batches_tracked")

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
    element: Element
    shape: tuple[int, ...]
    why: str = field(default="", compare=False)
    assembly: Assembly | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def dtype(self) -> torch.dtype:
        """Torch's dtype of the result."""
        return self.element.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.element.bits // 8


def plan(
    inputs: Sequence[StateDict],
    labels: Sequence[str],
    policy: Policy | None = None,
    *,
    has_base: bool = False,
    sources: Mapping[str, tuple[int, ...]] | None = None,
    told: Callable[[Finding], object] | None = None,
) -> list[Unit]:
    """Give one unit per tensor of the result, in the order of the first input.

    `labels` name the inputs in messages; with `has_base` the first is the others' ancestor. `sources` are the inputs
    that names are made of where not all take part in all (`merge.plan.stacked`). `told` is called with every
    finding that warns and is not accepted; by default it is a `MergeWarning`. Raises MergeError for findings that
    refuse and are not accepted, and then listing every difference in names, shapes and dtypes and every integer
    conflict, with the choices that resolve them.
    """
    policy = policy_of(policy)
    check_policy(policy, has_base)
    accepted(policy.accept)
    described = [stated(tensors) for tensors in inputs]
    statistics_from = statistics_source(policy.batchnorm, labels)
    decided = decisions(inputs, described, labels, policy)
    facts = Facts(labels, _examined(described, sources), policy, has_base, inputs, decided, sources is not None)
    found = examine(facts)
    refuse(found, policy.accept)
    every = dict.fromkeys(name for tensors in described for name in tensors)
    names = [name for name in every if name not in decided or decided[name].index != NOBODY]
    slices = read_slices(policy, labels, names)
    vocabulary = by_token(_dictionaries(inputs), labels)
    case = Case(inputs, described, labels, policy, decided, slices, vocabulary, statistics_from, sources)
    problems = name_problems(case, names)
    units: list[Unit] = []
    counts: dict[tuple[int, tuple[int, ...]], str] = {}
    for group in _tied_groups(case, names):
        unit, problem = _unit(group, case)
        if problem:
            problems.append(problem)
        elif unit:
            units.append(unit)
            if unit.assembly is not None and unit.assembly.put is not None:
                axis = unit.assembly.axis
                sizes = tuple(described[index][unit.name].shape[axis] for index in unit.sources)
                counts.setdefault((axis, sizes), unit.name)
    problems += row_problems(counts)
    if problems:
        problems = joined(problems, names)
        more = f"; and {len(problems) - SHOWN} more problems" if len(problems) > SHOWN else ""
        raise MergeError("; ".join(problems[:SHOWN]) + more)
    dictionary(inputs, labels, units)
    for finding in found:
        if finding.severity == "warn" and finding.code not in policy.accept:
            (told or warn)(finding)
    return units


def _examined(described: Sequence[Specs], sources: Mapping[str, tuple[int, ...]] | None) -> Sequence[Specs]:
    """What checks look at: of a result put together of layers what is merged, and everything whose rows are tokens."""
    if sources is None:
        return described
    words = [name for name in sources if VOCABULARY.fullmatch(name)]
    chosen = [{n: spec for n, spec in its.items() if len(sources[n]) > 1 or n in words} for its in described]
    for its in chosen:  # an embedding of one and a head of another: the rows of both are the same tokens
        its |= {other: its[name] for name in words if name in its for other in words if other not in its}
    return chosen


def decisions(
    inputs: Sequence[StateDict], described: Sequence[Specs], labels: Sequence[str], policy: Policy
) -> dict[str, Origin]:
    """Give the names that one input alone decides: as the policy says, codebooks, indices that are equal.

    Raises MergeError for rules of the policy that decide nothing.
    """
    decided = origins(described, labels, policy)
    return {**decided, **index_origins(inputs, described, decided, everywhere=policy.missing == "error")}


def by_name(units: Sequence[Unit], inputs: Sequence[StateDict]) -> dict[str, Unit]:
    """Give every name of the result with its unit, in the order in which the inputs list the names."""
    found = {name: unit for unit in units for name in unit.names}
    return {name: found[name] for name in dict.fromkeys(n for tensors in inputs for n in tensors) if name in found}


def dictionary(inputs: Sequence[StateDict], labels: Sequence[str], units: Sequence[Unit]) -> Mapping[str, int] | None:
    """Give the row of every token in the result, where inputs have dictionaries; None where none has.

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
        raise MergeError(f"{' and '.join(parts)}, of different dictionaries: keep, pick or merge all of them")
    return next((tokens for _, tokens in found.values()), given[0])


def _dictionaries(inputs: Sequence[StateDict]) -> list[Mapping[str, int] | None]:
    return [tensors.tokens if isinstance(tensors, Checkpoint) else None for tensors in inputs]


# -- ties ------------------------------------------------------------------------------------------------------------


def _tied_groups(case: Case, names: Sequence[str]) -> list[tuple[str, ...]]:
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
        untied = len(members) > 1 and members[0] not in case.decided and _untied(members, case)
        result.extend([(name,) for name in members] if untied else [tuple(members)])
    return result


def _untied(members: Sequence[str], case: Case) -> bool:
    """Whether an input unties names on purpose, by other values: so does the result then."""
    for index, tensors in enumerate(case.described):
        present = [name for name in members if name in tensors]
        if len({tensors[name].tie for name in present}) == 1 and tensors[present[0]].tie is not None:
            continue
        if not all(equal(case, (index, present[0]), (index, name)) for name in present[1:]):
            return True
    return False


# -- one tensor ------------------------------------------------------------------------------------------------------


def _unit(names: tuple[str, ...], case: Case) -> tuple[Unit | None, str]:
    """The unit of one tied group, or the problem that prevents it.

    In order of precedence: what one input alone decides; what some inputs lack; BatchNorm statistics that one input
    gives; slices and rows of several origins; integers; all else is merged.
    """
    name = names[0]
    origin = case.decided.get(name)
    slices = [item for item in case.slices if matches(name, (item.glob,))]
    every: Sequence[int] = range(len(case.inputs)) if case.sources is None else case.sources[name]
    holders = [index for index in every if name in case.described[index]]
    first = case.described[origin.index if origin else holders[0]][name]

    def copied(index: int, why: str) -> Unit:
        return Unit(names, "copy", (index,), first.element, first.shape, why)

    if origin:
        problem = f"slices={slices[0].rule!r}: {name} is {origin.why}, as a whole" if slices else ""
        return copied(origin.index, origin.why), problem
    sources, why = tuple(every), ""
    if case.sources is not None and len(sources) == 1:
        why = f"from {case.labels[sources[0]]}"
    if len(holders) < len(sources):
        sources, why = _present(holders, every, case), f"missing: {case.policy.missing}"
        if not sources:
            return None, ""  # its name is a problem already
        if len(sources) == 1:
            problem = f"slices={slices[0].rule!r}: only {case.labels[sources[0]]} decides {name}" if slices else ""
            return copied(sources[0], why), problem
    if case.statistics_from is not None and name.endswith(BATCHNORM) and not slices:
        whose = case.statistics_from if case.statistics_from in holders else sources[0]
        return copied(whose, case.policy.batchnorm), conflict(name, sources, case)
    vocabulary, problem = rows_of(name, sources, case) if not slices and len(sources) > 1 else (None, "")
    problem = problem or conflict(name, sources, case, rows=vocabulary is not None)
    shape, assembly = first.shape, None
    if vocabulary is not None:
        shape, why = vocabulary.shape(first.shape), "by channel" if vocabulary.axis else "by row"
        assembly = vocabulary.assembly(rows_policy(case.policy))
    elif slices and not problem:
        patches, problem = patches_for(name, slices, sources, shape)
        assembly, why = Assembly(patches=patches), "sliced"
    if problem:
        return None, problem
    if never_merged(name, first):
        if name.endswith(COUNTERS) and assembly is None:
            return Unit(names, "maximum", sources, first.element, shape, why), ""
        problem = integer_problem(name, sources, assembly, case)
        return Unit(names, "copy", sources if assembly else sources[:1], first.element, shape, why, assembly), problem
    chosen = case.policy.dtype
    element = first.element if chosen is None or first.element.is_complex else dtype_named(chosen)
    return Unit(names, "merge", sources, element, shape, why, assembly), ""


def _present(holders: Sequence[int], every: Sequence[int], case: Case) -> tuple[int, ...]:
    """The inputs that a name is taken from where some lack it; none where that is a problem."""
    if case.policy.missing == "keep-first":
        return (holders[0],)
    if case.policy.missing == "union":
        return tuple(holders)
    if case.policy.missing == "zero-delta" and holders[0] == 0:
        if case.sources is not None:
            return tuple(holders)  # of a stretch of layers: without it as with a change of zero
        return tuple(index if index in holders else 0 for index in every) if len(holders) > 1 else (0,)
    return ()
