"""What keeps checkpoints from being merged: names, shapes, dtypes, rows and integers that differ, each with advice."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merge.checkpoint.formats.tensors import Spec, TensorEntry, same_bytes
from merge.checkpoint.open import SHOWN
from merge.plan.policy import Origin, Policy, Slice
from merge.plan.rows import VOCABULARY, Assembly, Vocabulary, by_position, growing_axis
from merge.plan.tokens import has_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

# What BatchNorm, moving averages (LitEma) and torch's AveragedModel have counted: the only integers that differ between
# experts for a good reason.
COUNTERS = ("num_batches_tracked", "num_updates", "n_averaged")
# fairseq notes the version of a module's layout as a floating tensor: it says what the others mean.
_VERSION = re.compile(r"(.*\.)?version")


@dataclass(frozen=True)
class Case:
    """What the fate of a tensor depends on.

    Attributes:
        described: the inputs' dtypes, shapes and ties by name.
        decided: the names that one input alone decides.
        vocabulary: the rows that the inputs' dictionaries say, where they differ.
        statistics_from: the input that BatchNorm statistics come from, None where they are averaged.
        sources: the inputs that names are made of, where not all take part in all.
    """

    inputs: Sequence[Mapping[str, Tensor]]
    described: Sequence[Mapping[str, Spec | TensorEntry]]
    labels: Sequence[str]
    policy: Policy
    decided: Mapping[str, Origin]
    slices: Sequence[Slice]
    vocabulary: Vocabulary | None
    statistics_from: int | None
    sources: Mapping[str, tuple[int, ...]] | None = None


def name_problems(case: Case, names: Sequence[str]) -> list[str]:
    """Say which inputs lack names, where the policy does not say what then."""
    if case.policy.missing in ("keep-first", "union"):
        return []
    zero = case.policy.missing == "zero-delta"  # experts may lack names, the base may not
    wanted = [name for name in names if name not in case.decided]
    problems: list[str] = []
    for index, label in list(enumerate(case.labels))[: 1 if zero else None]:
        mine = [name for name in wanted if index in case.sources[name]] if case.sources is not None else wanted
        lacking = [name for name in mine if name not in case.described[index]]
        if lacking:
            problems.append(f"{label} lacks {listed(lacking)}")
    if problems:
        least = "" if zero else ", or pass missing='keep-first'"
        problems.append(f"leave them as they are with keep='GLOB', leave them out with drop='GLOB'{least}")
    return problems


def listed(names: Sequence[str]) -> str:
    """Show up to 20 names, then counts by module."""
    text = f"{len(names)} tensor{'s' * (len(names) != 1)}: {', '.join(names[:SHOWN])}"
    if len(names) <= SHOWN:
        return text
    groups = Counter(".".join(name.split(".")[:2]) for name in names[SHOWN:])
    return text + " and " + ", ".join(f"{count} in {prefix}" for prefix, count in sorted(groups.items())[:SHOWN])


def conflict(name: str, sources: Sequence[int], case: Case, *, rows: bool = False) -> str:
    """Say what keeps a tensor from being merged, with both values, "" where nothing does; `rows` may differ."""
    first, label = case.described[sources[0]][name], case.labels[sources[0]]
    for index in sources[1:]:
        spec, other = case.described[index][name], case.labels[index]
        if spec.shape != first.shape and not rows:
            axis = growing_axis(name, [first.shape, spec.shape])
            parts = {0: "row by row", 1: "those channels that all have"}.get(-1 if axis is None else axis)
            advice = leave(name) + (f", or merge {parts} with vocab_rows='keep-first'" if parts else "")
            if axis == 0 and all(has_tokenizer(case.inputs[place]) for place in sources):
                advice += ", or by token with tokenizer='union'"
            return f"{name} has shape {list(first.shape)} in {label} and {list(spec.shape)} in {other}: {advice}"
        floats = spec.element.is_floating_point and first.element.is_floating_point
        if spec.element is not first.element and not (floats and case.policy.dtype):
            advice = "choose the result's, as dtype='float32'" if floats else leave(name)
            return f"{name} is {first.element} in {label} and {spec.element} in {other}: {advice}"
    return ""


def joined(problems: Sequence[str], names: Collection[str]) -> list[str]:
    """Give every problem once; of those that say the same of several tensors the first, and the other names."""
    alike: dict[str, list[str]] = {}
    for problem in dict.fromkeys(problems):
        name, _, rest = problem.partition(" ")
        alike.setdefault(rest if name in names else problem, []).append(name)
    found: list[str] = []
    for text, own in alike.items():
        more = f"; the same of {listed(own[1:])}" if own[1:] else ""
        found.append((f"{own[0]} {text}" if own[0] in names else text) + more)
    return found


def leave(name: str) -> str:
    """Give the way out for a tensor that cannot be merged."""
    return f"pass keep={name!r} or drop={name!r}"


def never_merged(name: str, spec: Spec | TensorEntry) -> bool:
    """Tell whether a tensor is no arithmetic: integers, and the version of a module's layout."""
    version = name.endswith("version") and math.prod(spec.shape) == 1 and bool(_VERSION.fullmatch(name))
    return version or not spec.element.arithmetic or not (spec.element.is_floating_point or spec.element.is_complex)


def integer_problem(name: str, sources: Sequence[int], assembly: Assembly | None, case: Case) -> str:
    """Say where a tensor that is never merged differs, apart from slices of one input's; "" where it is equal."""
    spec = case.described[sources[0]][name]
    if assembly is not None and assembly.put is not None:
        return f"{name} is {spec.element} and has rows that differ: {leave(name)}"
    for index in sources[1:]:
        if not equal(case, (sources[0], name), (index, name), assembly):
            what = "a version is" if spec.element.is_floating_point else "integers are"
            what = what if spec.element.arithmetic else "scales and packed numbers are"
            both = f"{case.labels[sources[0]]} and {case.labels[index]}"
            return f"{name} is {spec.element} and differs between {both}: {what} never merged; {leave(name)}"
    return ""


def equal(case: Case, first: tuple[int, str], second: tuple[int, str], assembly: Assembly | None = None) -> bool:
    """Tell whether two tensors, each an input and a name, hold the same numbers, but where an assembly patches them.

    Of files bytes are compared first: the usual case, which needs no torch.
    """
    a, b = (case.described[index][name] for index, name in (first, second))
    if isinstance(a, TensorEntry) and isinstance(b, TensorEntry) and same_bytes(a, b):
        return True
    if not a.element.arithmetic or not b.element.arithmetic:
        return False
    import torch

    def patched(index: int, name: str) -> Tensor:
        tensor = case.inputs[index][name]
        for patch in assembly.patches if assembly else ():
            tensor = tensor.index_fill(patch.axis, patch.put, 0)
        return tensor

    return torch.equal(patched(*first), patched(*second))


def rows_policy(policy: Policy) -> str:
    """Give what happens to rows that some lack: as is said for rows, else for all that is missing."""
    if policy.vocab_rows != "error":
        return policy.vocab_rows
    return {"union": "keep-first"}.get(policy.missing, policy.missing)


def rows_of(name: str, sources: Sequence[int], case: Case) -> tuple[Vocabulary | None, str]:
    """Give the rows (or input channels) of a tensor where they differ between inputs, or why they cannot be matched."""
    if case.vocabulary is None and case.policy.vocab_rows == "error":
        return None, ""
    shapes = [case.described[index][name].shape for index in sources]
    axis = growing_axis(name, shapes)
    if axis == 1 and case.policy.vocab_rows != "error":
        return by_position([shape[1] for shape in shapes], 1), ""
    if not VOCABULARY.fullmatch(name) or len({shape[1:] for shape in shapes}) > 1:
        return None, ""
    found = None if case.vocabulary is None else case.vocabulary.among(sources)
    if found is not None and found.fits(shapes):
        if bool((found.rows < 0).all(0).any()):
            return None, f"{name}: no input that has it has the rows of all tokens; {leave(name)}, or pick it"
        if rows_policy(case.policy) == "error" and bool((found.rows < 0).any()):
            lacking = found.lacking([case.labels[index] for index in sources])
            return None, f"the dictionaries differ: {lacking}; keep such rows with vocab_rows='keep-first'"
        return found, ""
    if found is not None or axis is None or case.policy.vocab_rows == "error":
        return None, ""
    return by_position([shape[0] for shape in shapes]), ""


def row_problems(counts: Mapping[tuple[int, tuple[int, ...]], str]) -> list[str]:
    """Say which tensors have other numbers of rows, or channels, than the first: not all can be matched by position.

    `counts` gives a tensor for every axis and sizes along it, one size an input.
    """
    problems: list[str] = []
    for axis, what, none in ((0, "rows", "vocabulary"), (1, "channels", "input of the model")):
        differing = {sizes: name for (at, sizes), name in counts.items() if at == axis}
        if len(differing) > 1:
            each = ", ".join(f"{name} has {', '.join(map(str, sizes))}" for sizes, name in differing.items())
            problems.append(f"{what} differ otherwise: {each}; keep or drop the one that is no {none}")
    return problems
