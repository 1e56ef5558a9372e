"""Adapters added to their base, in memory: what happens to every tensor, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merge.checkpoint.formats.elements import element_of
from merge.checkpoint.scaled import dequantized, stated
from merge.checkpoint.source import Source, StateDict, opened, whole
from merge.engine.kernel import nonfinite, refuse_nonfinite, rounded
from merge.errors import MergeError
from merge.plan.findings import Facts, examine, refuse, warn
from merge.plan.findings.kinds import prefixes
from merge.plan.policy import Origin, Policy
from merge.plan.units import Unit, plan
from merge.tools.adapters.combined import Changes, combined
from merge.tools.adapters.factors import Part, bias_of, concatenated, parts_of, saved_of, shares_of
from merge.tools.adapters.folder import EMBEDDING, Adapter, open_adapter
from merge.tools.adapters.rows import Rows, check_copies, check_rows, with_rows


def apply_adapters(
    base: Source,
    adapters: Sequence[Adapter | str | Path],
    *,
    weights: Sequence[float] | None = None,
    mode: str = "exact",
    allow_nonfinite: bool = False,
    dequantize: bool = False,
    accept: str | Sequence[str] = (),
    **parameters: Any,
) -> dict[str, Tensor]:
    """`base + sum_i w_i s_i B_i A_i`, in float32, rounded once to the base's dtype; other tensors are the base's own.

    Or, by another `mode` with its `parameters`, `base +` what the method makes of the changes: see `merge_adapters`.

    With `dequantize`, 8-bit floats with scales beside them are what they stand for, and bfloat16 in the result.

    Raises MergeError for findings about what is changed (docs/findings.md) whose codes are not in `accept`, for modules
    that the base lacks or has in another shape, and for infinite and NaN values in the result, copied or computed,
    unless `allow_nonfinite` is set.
    """
    adapters = [each if isinstance(each, Adapter) else open_adapter(each) for each in adapters]
    policy = Policy(
        dequantize=dequantize,
        accept=(accept,) if isinstance(accept, str) else tuple(accept),
        allow_nonfinite=allow_nonfinite,
    )
    made = changes_by(adapters, weights, mode, parameters)
    applied = over_base(opened(base, name="base"), adapters, weights, policy, made)
    tensors = {unit.names: applied.tensor(unit) for unit in applied.units}
    return {name: tensors[unit.names] for name, unit in applied.by_name().items()}


def changes_by(
    adapters: Sequence[Adapter], weights: Sequence[float] | None, mode: str, parameters: Mapping[str, Any]
) -> Changes | None:
    """Give the changes that a mode makes; None where they are summed exactly. Raises MergeError for mode "factors"."""
    if mode == "factors":
        raise MergeError("mode factors is for adapters alone: over a base the sum is exact, leave mode=... out")
    if mode == "exact" and parameters:
        raise MergeError(f"mode exact has no parameter {next(iter(parameters))!r}")
    return None if mode == "exact" else combined(adapters, weights, mode, parameters)


@dataclass(frozen=True)
class OverBase:
    """A base with what happens to its tensors.

    Attributes:
        base: the base, with codes and scales as the weights that they stand for where the policy says so.
        units: its tensors, tied ones as one, and last those that it lacks and adapters trained whole.
        changes: what is done to some of them, by name.
    """

    base: StateDict
    units: Sequence[Unit]
    changes: Mapping[str, Change]
    policy: Policy

    def tensor(self, unit: Unit) -> Tensor:
        """Give the result's tensor. Raises MergeError for infinite and NaN values that the policy does not allow."""
        change = self.changes.get(unit.name)
        own = whole(self.base, unit.name) if unit.name in self.base else None
        value = own if change is None else change(own)
        assert value is not None
        value = rounded(value, unit.dtype)
        refuse_nonfinite(unit, nonfinite(value), self.policy)
        return value

    def by_name(self) -> dict[str, Unit]:
        """Give every name of the result with its unit, in the order of the base."""
        found = {name: unit for unit in self.units for name in unit.names}
        return {name: found[name] for name in dict.fromkeys((*self.base, *found))}


def over_base(
    base: StateDict,
    adapters: Sequence[Adapter],
    weights: Sequence[float] | None,
    policy: Policy,
    made: Changes | None = None,
) -> OverBase:
    """Say what to do with a base's tensors; nothing is computed yet but the averages of whole tensors.

    `made` gives the changes of modules where they are not summed exactly.

    Asks of the tensors to be changed what every merge asks. Raises MergeError as `apply_adapters` does.
    """
    if policy.dequantize:
        base = dequantized(base)
    units = plan([base], ["base"], policy)
    shares = shares_of(adapters, weights)
    modules = {f"{module}." for adapter in adapters for module in (*adapter.modules, *adapter.rows)}
    modules |= {name.rpartition(".")[0] + "." for adapter in adapters for name in adapter.saved}
    _ask(base, modules, policy)
    changes = _low_rank(base, adapters, shares if made is None else [1.0] * len(adapters))
    for change in changes.values():
        change.made = made
    _add_rows(base, adapters, shares, changes)
    check_copies(base, {adapter.name: adapter.copies for adapter in adapters})
    for name, value in saved_of(adapters, weights).items():
        if name in changes:
            raise MergeError(
                f"{name} was trained whole in one adapter and changed by another: merge each into its base"
            )
        like = base.get(name)
        if like is None:
            units.append(Unit((name,), "copy", (0,), element_of(value.dtype), tuple(value.shape)))
        elif like.shape != value.shape:
            raise MergeError(f"{name} has shape {list(like.shape)} in the base and {list(value.shape)} in the adapters")
        changes[name] = Change(name, instead=value)
    for unit in units:
        changed = [name for name in unit.names if name in changes]
        if changed and len(unit.names) > 1 and not _one_change([changes[name] for name in changed], unit):
            raise MergeError(
                f"{changed[0]} is one tensor with {' and '.join(unit.names)} in the base: give it one of its own there "
                f"first, as state[{changed[0]!r}] = state[{changed[0]!r}].clone()"
            )
        if changed:
            changes[unit.name] = changes[changed[0]]
    return OverBase(base, units, changes, policy)


def _one_change(changes: Sequence[Change], unit: Unit) -> bool:
    """Whether tied names change as one: rows, which peft gives to tied modules too, or each to the same tensor."""
    if all(change.rows for change in changes):
        return len(changes) == 1
    values = [change.instead for change in changes]
    alike = all(value is not None and values[0] is not None and torch.equal(value, values[0]) for value in values)
    return alike and len(changes) == len(unit.names)


def _ask(base: StateDict, modules: Collection[str], policy: Policy) -> None:
    """Ask the findings of a merge of the base with itself, in which only what these modules have is computed."""
    described, labels = stated(base), ["base", "the base with adapters"]
    others = {name: Origin(0) for name in described if not any(prefix in modules for prefix in prefixes(name))}
    found = examine(Facts(labels, [described, described], policy, True, [base, base], others))
    refuse(found, policy.accept)
    for finding in found:
        if finding.severity == "warn" and finding.code not in policy.accept:
            warn(finding)


class Change:
    """What happens to one tensor of the base: a sum of changes is added, or it or rows of it are replaced."""

    def __init__(
        self,
        module: str,
        parts: Sequence[Part] = (),
        transposed: bool = False,
        *,
        instead: Tensor | None = None,
        added: Tensor | None = None,
    ):
        self.module, self.parts, self.transposed, self.instead, self.added = module, parts, transposed, instead, added
        self.rows: list[tuple[float, Rows]] = []
        self.made: Changes | None = None

    def __call__(self, value: Tensor | None) -> Tensor:
        """The changed tensor; a sum is in float32."""
        if self.instead is not None or value is None:
            assert self.instead is not None
            return self.instead
        if self.added is not None:
            return value.float() + self.added
        if self.rows:
            return with_rows(value, self.rows)
        if self.made is None:
            factors = concatenated(self.module, self.parts)
            change = factors.b.flatten(1) @ factors.a.flatten(1)
        else:
            change = self.made(self.module).float()
        change = change.T if self.transposed else change
        return value.float() + change.reshape(value.shape)


def _low_rank(base: StateDict, adapters: Sequence[Adapter], shares: Sequence[float]) -> dict[str, Change]:
    """The sums of factors, by the name of the weight that they change."""
    changes: dict[str, Change] = {}
    for module, parts in parts_of(adapters, shares).items():
        name = f"{module}.weight"
        if name not in base:
            raise MergeError(
                f"the base lacks {name}, which {adapters[0].name} changes; it has {', '.join(list(base)[:3])}"
            )
        factors = parts[0].factors
        transposed = factors.ends == EMBEDDING or bool(adapters[0].config.get("fan_in_fan_out"))
        shape = [factors.b.shape[0], *factors.a.shape[1:]]
        wanted = shape[::-1] if transposed else shape
        if list(base[name].shape) != wanted or not base[name].is_floating_point():
            told = f"{list(base[name].shape)} {base[name].dtype}"
            raise MergeError(f"{name} is {told} in the base, the adapters' change has shape {wanted}")
        changes[name] = Change(module, parts, transposed)
        if (bias := bias_of(parts)) is not None:
            name = f"{module}.bias"
            if name not in base or base[name].shape != bias.shape:
                told = f"has shape {list(base[name].shape)}" if name in base else "is not"
                raise MergeError(f"{name} {told} in the base, the adapters' change has shape {list(bias.shape)}")
            changes[name] = Change(module, added=bias)
    return changes


def _add_rows(
    base: StateDict, adapters: Sequence[Adapter], shares: Sequence[float], changes: dict[str, Change]
) -> None:
    """Note the rows of tokens that adapters trained among the changes."""
    for adapter, share in zip(adapters, shares, strict=True):
        for module, rows in adapter.rows.items():
            name = f"{module}.weight"
            if name not in base:
                raise MergeError(f"the base lacks {name}, of which {adapter.name} trained rows")
            change = changes.setdefault(name, Change(module))
            if change.parts:
                raise MergeError(f"{name}: rows were trained in {adapter.name} and factors in another adapter")
            check_rows(name, base[name], rows)
            change.rows.append((share, rows))
