"""Rows of embeddings that an adapter holds whole: trained tokens, and copies of what the base has."""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from merge.errors import MergeError

# The ends of the names: rows trained by `trainable_token_indices`, and the frozen weight beside an embedding's factors.
TOKENS = ".token_adapter.trainable_tokens_delta"
COPY = ".base_layer.weight"


@dataclass(frozen=True)
class Rows:
    """New rows of one embedding: values [count, width], in place of the base's rows `indices`."""

    indices: tuple[int, ...]
    values: Tensor


def read_rows(place: object, config: Mapping[str, Any], found: Mapping[str, Tensor]) -> dict[str, Rows]:
    """Read the rows by module, of the tensors `found` by module and the configuration's `trainable_token_indices`.

    Raises MergeError where the two do not fit together.
    """
    key = "trainable_token_indices"
    given: Any = config.get(key) or {}
    result: dict[str, Rows] = {}
    for module, values in found.items():
        indices: Any = given
        if isinstance(given, dict):
            indices = next((given[name] for name in given if f".{module}".endswith(f".{name}")), None)
        kind = isinstance(indices, list) and indices and all(type(i) is int and i >= 0 for i in indices)
        if not kind or len(set(indices)) < len(indices) or values.ndim != 2 or len(indices) != values.shape[0]:
            told = f"{key} is {str(given)[:80]}"
            raise MergeError(f"{place}: {module} has trained rows of shape {list(values.shape)}, and {told}")
        result[module] = Rows(tuple(indices), values)
    if len(result) < (len(given) if isinstance(given, dict) else 1 if given else 0):
        raise MergeError(f"{place}: {key} is {str(given)[:80]}, and the file lacks such rows (*{TOKENS})")
    return result


def averaged_rows(adapters: Mapping[str, Mapping[str, Rows]], shares: Sequence[float]) -> dict[str, Tensor]:
    """Give the weighted averages of the adapters' rows, named as peft names them.

    Raises MergeError where adapters have other rows than the first, and for weights that do not sum to 1: then only a
    base says what the other rows are.
    """
    first, *_ = adapters
    advice = "add the adapters to their base with base=..., where rows are merged one by one"
    for module in sorted({module for rows in adapters.values() for module in rows}):
        for name, rows in adapters.items():
            told = [each[module].indices if module in each else () for each in (adapters[first], rows)]
            if told[0] != told[1]:
                tokens = " and ".join(str(list(each))[:60] for each in told)
                raise MergeError(f"{module}: {first} and {name} trained other tokens, {tokens}: {advice}")
        if not math.isclose(math.fsum(shares), 1, abs_tol=1e-6):
            raise MergeError(f"{module}: rows of tokens are averaged: weights must sum to 1; or {advice}")
    result: dict[str, Tensor] = {}
    for module, own in adapters[first].items():
        parts = [rows[module].values for rows in adapters.values()]
        value = torch.stack([part.float() * share for part, share in zip(parts, shares, strict=True)]).sum(0)
        result[module + TOKENS] = value.to(own.values.dtype)
    return result


def check_rows(name: str, base: Tensor, rows: Rows) -> None:
    """Raise MergeError where the base has no such rows."""
    if base.ndim != 2 or base.shape[1] != rows.values.shape[1] or max(rows.indices) >= base.shape[0]:
        told = f"rows up to {max(rows.indices)} of width {rows.values.shape[1]}"
        raise MergeError(f"{name} is {list(base.shape)} in the base, and the adapters trained {told}")


def with_rows(value: Tensor, parts: Sequence[tuple[float, Rows]]) -> Tensor:
    """`value + sum_i w_i (rows_i - value)` row by row, in float32: at one weight of 1 the rows to the bit."""
    rest = torch.ones(value.shape[0], dtype=torch.float64)
    added = value.new_zeros(value.shape, dtype=torch.float32)
    for share, rows in parts:
        rest[list(rows.indices)] -= share
        added[list(rows.indices)] += share * rows.values.float()
    touched = sorted({index for _, rows in parts for index in rows.indices})
    result = value.clone()
    mixed = value[touched].float() * rest[touched].float()[:, None] + added[touched]
    result[touched] = mixed.to(value.dtype)
    return result


def common_copies(adapters: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Give the copies of the base's embeddings, named as peft names them. Raises MergeError where they differ."""
    result: dict[str, Tensor] = {}
    holder: dict[str, str] = {}
    for name, copies in adapters.items():
        for module, value in copies.items():
            before = result.setdefault(module + COPY, value)
            if before is not value and not torch.equal(before.to(value.dtype), value):
                raise MergeError(
                    f"{module}: {holder[module]} and {name} hold other weights of it: they belong to different bases"
                )
            holder.setdefault(module, name)
    return result


def check_copies(base: Mapping[str, Tensor], adapters: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Raise MergeError where an adapter's copy of the base's weight is not what the base has."""
    for name, copies in adapters.items():
        for module, value in copies.items():
            own = base.get(f"{module}.weight")
            if own is not None and (own.shape != value.shape or not torch.equal(own, value.to(own.dtype))):
                raise MergeError(
                    f"{module}.weight differs between the base {list(own.shape)} and {name}'s copy of it "
                    f"{list(value.shape)}: this is not the base that {name} was trained on"
                )
