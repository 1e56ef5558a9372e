"""What `doctor` finds, and the findings that headers alone give: names, shapes, dtypes."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from merge.checkpoint.formats.tensors import Spec, TensorEntry
from merge.plan.policy import Policy, dtype_name, matches
from merge.tools.diagnose.tables import counted, listed

# A tensor with as many elements has cosines to chance partners of 1 / sqrt(1024) = 0.03.
LARGE = 1024
# Components of names whose rows are classes or words: the first axis follows the task, not the architecture.
HEAD = re.compile(r"((\w+_)?heads?|classifier|cls|fc|fc_out|logits|output_projection|predictions?|.*embed.*|wte|wpe)")
# 8-bit integers, and the names that 4-bit packers use, are codes whose scales lie beside them.
PACKED = re.compile(r".*(qweight|qzeros)")
CODES = (torch.int8, torch.uint8)

Severity = Literal["error", "warning", "note"]
Description = Mapping[str, Spec | TensorEntry]


@dataclass(frozen=True)
class Finding:
    """One thing that `doctor` noticed.

    Attributes:
        severity: "error": cannot be merged; "warning": likely to go wrong; "note": worth knowing.
        title: two or three words, the same for one kind of finding.
        seen: what was seen, with the values of both sides.
        advice: what to do.
        tensors: all names concerned, where the finding is about tensors.
    """

    severity: Severity
    title: str
    seen: str
    advice: str
    tensors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """The checkpoints examined.

    Attributes:
        labels: one for each; the base, where there is one, is the first.
        specs: their headers, without what the policy drops.
        policy: the user's choices, as for a merge.
        has_base: whether the first is the others' ancestor.
    """

    labels: tuple[str, ...]
    specs: tuple[Description, ...]
    policy: Policy
    has_base: bool

    @functools.cached_property
    def wanted(self) -> list[str]:
        """Names that a merge would compute: all that no pattern keeps."""
        names = dict.fromkeys(name for spec in self.specs for name in spec)
        return [name for name in names if not matches(name, self.policy.keep)]

    @functools.cached_property
    def common(self) -> list[str]:
        """Wanted names that all have."""
        return [name for name in self.wanted if all(name in spec for spec in self.specs)]

    @property
    def inputs(self) -> range:
        """Indices of the checkpoints without the base."""
        return range(int(self.has_base), len(self.labels))


def header_findings(case: Case, differing: Collection[str]) -> list[Finding]:
    """Everything that names, shapes and dtypes tell; `differing` are the integer tensors whose values differ."""
    packed = {name: None for name in case.common if any(_is_code(name, spec[name]) for spec in case.specs)}
    found = [*_names(case), *_shapes(case), *_dtypes(case, packed)]
    if packed:
        found.append(_quantised(case, list(packed), set(differing)))
    return [*found, *_integers(case, [name for name in differing if name not in packed])]


def chosen(option: str, names: Collection[str], among: Collection[str]) -> str:
    """An option for a command line that matches these names and no other of `among`, at most three times.

    >>> chosen("--keep", ["head.weight", "head.bias", "scale"], ["head.weight", "head.bias", "scale", "body.scale"])
    "--keep 'head.*' --keep 'scale'"
    """
    mine = set(names)
    taken = {prefix for name in among if name not in mine for prefix in _prefixes(name)}
    found: dict[str, None] = {}
    for name in names:
        free = next((prefix for prefix in _prefixes(name) if prefix not in taken), None)
        found[f"{option} '{name if free is None else free + '*'}'"] = None
    return " ".join(list(found)[:3]) + (f" (and {len(found) - 3} more)" if len(found) > 3 else "")


def _prefixes(name: str) -> list[str]:
    """`a.b.c` as `a.`, `a.b.`."""
    parts = name.split(".")
    return [".".join(parts[:end]) + "." for end in range(1, len(parts))]


# -- names ------------------------------------------------------------------------------------------------------------


def _names(case: Case) -> list[Finding]:
    lacking = {label: [n for n in case.wanted if n not in s] for label, s in zip(case.labels, case.specs, strict=True)}
    lacking = {label: names for label, names in lacking.items() if names}
    if not lacking:
        return []
    every = tuple(dict.fromkeys(name for names in lacking.values() for name in names))
    seen = "; ".join(
        f"{label} lacks {counted(len(names), 'tensor')}: {listed(names)}" for label, names in lacking.items()
    )
    done = {
        "keep-first": "they are taken unmerged from the first that has them",
        "zero-delta": "an expert that lacks them counts as the base there",
        "union": "they are merged among those that have them",
    }
    if case.policy.missing in done:
        return [Finding("note", "names differ", seen, done[case.policy.missing], every)]
    return [_prefixed(case) or Finding("error", "names differ", seen, _names_advice(case, every), every)]


def _names_advice(case: Case, missing: Sequence[str]) -> str:
    if not case.common:
        return "they share no name: choose another --section, or these are different models"
    tied = _tied(case, missing)
    if tied:
        return (
            f"leave out with {chosen('--drop', missing, case.wanted)}: {missing[0]} is tied to {tied}, which is merged"
        )
    return (
        f"leave them as in the first that has them with {chosen('--keep', missing, case.wanted)}, leave them out with "
        "--drop, or take all such with --missing keep-first"
    )


def _tied(case: Case, missing: Sequence[str]) -> str:
    """The common tensor that the first missing one is tied to where every missing one is tied to some, else ""."""
    ties = [{spec[name].tie: name for name in reversed(case.common) if spec[name].tie} for spec in case.specs]
    partners = [
        next((tied.get(spec[name].tie, "") for spec, tied in zip(case.specs, ties, strict=True) if name in spec), "")
        for name in missing
    ]
    return partners[0] if all(partners) else ""


def _prefixed(case: Case) -> Finding | None:
    """All names of one checkpoint are another's with a prefix: a wrapper was saved with the model."""
    for index, spec in enumerate(case.specs):
        for other, plain in zip(case.labels, case.specs, strict=True):
            prefix = _prefix(list(spec), plain)
            if prefix:
                label = case.labels[index]
                return Finding(
                    "error",
                    "names have a prefix",
                    f"every name of {label} begins with {prefix!r} ({next(iter(spec))}), those of {other} do not",
                    f"save it without: merge.save_checkpoint({{n.removeprefix({prefix!r}): t for n, t in "
                    "checkpoint.items()}, path)",
                    tuple(spec),
                )
    return None


def _prefix(names: Sequence[str], plain: Description) -> str:
    """What all names begin with and most are names of `plain` without, "" where there is no such thing."""
    for prefix in _prefixes(names[0]) if names else []:
        if not all(name.startswith(prefix) for name in names):
            return ""
        if 2 * sum(name.removeprefix(prefix) in plain for name in names) > max(len(names), len(plain)):
            return prefix
    return ""


# -- shapes and dtypes ------------------------------------------------------------------------------------------------


def _shapes(case: Case) -> list[Finding]:
    heads: list[str] = []
    others: list[str] = []
    for name in case.common:
        shapes = {spec[name].shape for spec in case.specs}
        if len(shapes) > 1:
            rows_only = len({shape[1:] for shape in shapes}) == 1 and all(shapes)
            (heads if rows_only and any(map(HEAD.fullmatch, name.split("."))) else others).append(name)
    found: list[Finding] = []
    if heads:
        advice = (
            "rows for other classes or words do not correspond: leave those of the first with "
            f"{chosen('--keep', heads, case.wanted)}, or leave them out with --drop and train new ones"
        )
        found.append(Finding("error", "heads differ", _shapes_seen(case, heads), advice, tuple(heads)))
    if others:
        option = chosen("--keep", others, case.wanted)
        advice = f"these are models of different sizes; if only these parts differ, {option}, or --drop them"
        found.append(Finding("error", "shapes differ", _shapes_seen(case, others), advice, tuple(others)))
    return found


def _shapes_seen(case: Case, names: Sequence[str]) -> str:
    name = names[0]
    shapes = _by_value(case.labels, [str(list(spec[name].shape)) for spec in case.specs])
    return f"{name} is {shapes}" + (f"; also {listed(names[1:])}" if len(names) > 1 else "")


def _by_value(labels: Sequence[str], values: Sequence[str]) -> str:
    """`float32 in base, vqa and float16 in caption`."""
    groups: dict[str, list[str]] = {}
    for label, value in zip(labels, values, strict=True):
        groups.setdefault(value, []).append(label)
    return " and ".join(f"{value} in {', '.join(group)}" for value, group in groups.items())


def _dtypes(case: Case, packed: Collection[str]) -> list[Finding]:
    """One finding for each combination of dtypes met."""
    groups: dict[tuple[torch.dtype, ...], list[str]] = {}
    for name in case.common:
        dtypes = tuple(spec[name].dtype for spec in case.specs)
        if name not in packed and _conflicting(dtypes, case.policy):
            groups.setdefault(dtypes, []).append(name)
    found: list[Finding] = []
    for dtypes, names in groups.items():
        kinds = _by_value(case.labels, [dtype_name(dtype) for dtype in dtypes])
        if all(dtype.is_floating_point for dtype in dtypes):
            widest = max(dtypes, key=lambda dtype: dtype.itemsize)
            advice = f"choose the result's dtype: --dtype {dtype_name(widest)}"
        else:
            advice = f"integers are never merged: {chosen('--keep', names, case.wanted)}, or --drop them"
        seen = f"{counted(len(names), 'tensor')} {'is' if len(names) == 1 else 'are'} {kinds}: {listed(names)}"
        found.append(Finding("error", "dtypes differ", seen, advice, tuple(names)))
    return found


def _conflicting(dtypes: Collection[torch.dtype], policy: Policy) -> bool:
    return len(set(dtypes)) > 1 and (policy.dtype is None or not all(dtype.is_floating_point for dtype in dtypes))


def _is_code(name: str, spec: Spec | TensorEntry) -> bool:
    if spec.dtype.is_floating_point:
        return spec.dtype.itemsize == 1
    return bool(PACKED.fullmatch(name)) or (spec.dtype in CODES and is_large_matrix(spec.shape))


def is_large_matrix(shape: Sequence[int]) -> bool:
    """Whether cosines of tensors of this shape tell related weights from unrelated ones."""
    return len(shape) > 1 and torch.Size(shape).numel() >= LARGE


def _quantised(case: Case, names: Sequence[str], differing: Collection[str]) -> Finding:
    """Averaging codes averages neither weights nor scales; integer codes that differ cannot be merged at all."""
    kinds = Counter(
        f"{dtype_name(spec[name].dtype)} in {label}"
        for label, spec in zip(case.labels, case.specs, strict=True)
        for name in names
        if _is_code(name, spec[name])
    )
    dtypes = [tuple(spec[name].dtype for spec in case.specs) for name in names]
    impossible = any(name in differing for name in names) or any(_conflicting(each, case.policy) for each in dtypes)
    return Finding(
        "error" if impossible else "warning",
        "quantised weights",
        f"{', '.join(f'{count:,} {kind}' for kind, count in kinds.items())}: {listed(names)}",
        "merge the checkpoints from before quantisation, and quantise the result",
        tuple(names),
    )


def _integers(case: Case, names: Sequence[str]) -> list[Finding]:
    if not names:
        return []
    seen = f"{counted(len(names), 'integer tensor')} of other values in {' and '.join(case.labels)}: {listed(names)}"
    option = chosen("--keep", names, case.wanted)
    advice = f"integers are never merged: leave those of the first with {option}, or --drop them"
    return [Finding("error", "integers differ", seen, advice, tuple(names))]
