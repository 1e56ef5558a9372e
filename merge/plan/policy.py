"""The user's explicit choices, and what they decide before any tensor is looked at: which input a name comes from."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from merge.errors import MergeError

MISSING = ("error", "keep-first", "zero-delta", "union")
VOCAB_ROWS = ("error", "keep-first", "zero-delta")
# What a vector quantiser keeps beside its codebook: moving sums of the vectors that chose each code. The entries only
# mean something together, and codes of two codebooks do not correspond.
CODEBOOK = ("embed", "embed_avg", "cluster_size", "initted")
_EVIDENCE = ("embed_avg", "cluster_size")
_SLICE = re.compile(r"(?P<glob>.+)\[(?P<axis>\d+), ?(?P<index>\d+)\]=(?P<name>[^=]+)")
NOBODY = -1


@dataclass(frozen=True)
class Policy:
    """The user's explicit choices.

    Attributes:
        keep: globs of names left as in the first input that has them.
        drop: globs of names left out of the result.
        pick: "GLOB=INPUT": the names that fit the glob are that input's, unmerged, and those that it lacks are left
            out; without an input ("GLOB=") all are. The first glob that fits a name decides it; after `drop`, before
            `keep`.
        slices: "GLOB[AXIS,INDEX]=INPUT": of tensors that fit, the slice at that index of the axis is that input's.
        missing: a name that some input lacks is an "error"; or is taken unmerged from the first that has it
            ("keep-first"); or counts as the base's where an expert lacks it ("zero-delta": its task vector is zero); or
            is merged among the inputs that have it, whose shares are scaled to the sum 1 ("union").
        vocab_rows: the same for rows of a vocabulary that some input lacks: "error", "keep-first" or "zero-delta".
        dtype: dtype of the merged floating tensors; None keeps each tensor's own, which inputs must then share.
        compute_dtype: dtype of the arithmetic, float32 or float64; float64 tensors always have float64.
        batchnorm: "average" (statistics are merged like weights) or "from:<input name>".
        allow_nonfinite: accept infinities and NaNs in the result.
        extrapolate: accept coefficients outside [0, 1].
    """

    keep: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    pick: tuple[str, ...] = ()
    slices: tuple[str, ...] = ()
    missing: str = "error"
    vocab_rows: str = "error"
    dtype: torch.dtype | None = None
    compute_dtype: torch.dtype = torch.float32
    batchnorm: str = "average"
    allow_nonfinite: bool = False
    extrapolate: bool = False


@dataclass(frozen=True)
class Origin:
    """The one input that a name comes from, unmerged, and why. `index` is NOBODY for names that are left out."""

    index: int
    why: str = ""


@dataclass(frozen=True)
class Slice:
    """One index of one axis, taken from one input."""

    rule: str
    glob: str
    axis: int
    index: int
    source: int


def check_policy(policy: Policy, has_base: bool) -> None:
    """Raise MergeError for values that a policy cannot have, or not without a base."""
    for option, value, known in (
        ("missing", policy.missing, MISSING),
        ("vocab_rows", policy.vocab_rows, VOCAB_ROWS),
    ):
        if value not in known:
            *others, last = (repr(word) for word in known)
            raise MergeError(f"{option}={value!r}: must be {', '.join(others)} or {last}")
        if value == "zero-delta" and not has_base:
            raise MergeError(
                f"{option}='zero-delta' says what lacks counts as the base's, and there is no base: use a method with "
                "one (task-arithmetic with weights of sum 1 is the average relative to a base)"
            )
    if policy.missing == "union" and has_base:
        raise MergeError("missing='union' has no meaning beside a base: what an expert lacks is 'zero-delta' there")
    if policy.compute_dtype not in (torch.float32, torch.float64):
        raise MergeError(
            f"compute_dtype {str(policy.compute_dtype).removeprefix('torch.')}: must be float32 or float64"
        )


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a tensor's name fits one of the globs (`*` crosses dots, case counts)."""
    return bool(patterns) and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def origins(inputs: Sequence[Collection[str]], labels: Sequence[str], policy: Policy) -> dict[str, Origin]:
    """The names that one input alone decides (`keep`, `drop`, `pick`, codebooks), each with its origin.

    Raises MergeError for a glob that decides no name (a typing mistake, or hidden by an earlier one) and for an input
    that is not there.
    """
    names = list(dict.fromkeys(name for tensors in inputs for name in tensors))
    for option, patterns in (("--keep", policy.keep), ("--drop", policy.drop)):
        for pattern in patterns:
            refuse_idle(option, pattern, pattern, names)
    found: dict[str, Origin] = {}
    picks = [_pick(rule, labels) for rule in policy.pick]
    used: set[str] = set()
    for name in names if policy.keep or policy.drop or picks else ():
        glob, index = next((pick for pick in picks if fnmatch.fnmatchcase(name, pick[0])), ("", NOBODY))
        if matches(name, policy.drop):
            found[name] = Origin(NOBODY, "dropped")
        elif glob:
            used.add(glob)
            has = index != NOBODY and name in inputs[index]
            found[name] = Origin(index, f"picked from {labels[index]}") if has else Origin(NOBODY, "left out")
        elif matches(name, policy.keep):
            found[name] = Origin(_first(name, inputs), "kept")
    for glob, _ in picks:
        if glob not in used and glob != "*":
            raise MergeError(f"--pick {glob!r} decides no tensor: {_why_idle(glob, names)}")
    for name in _codebooks(names):
        everywhere = all(name in tensors for tensors in inputs)
        if name not in found and (everywhere or policy.missing != "error"):
            found[name] = Origin(_first(name, inputs), "codebook")
    return found


def _first(name: str, inputs: Sequence[Collection[str]]) -> int:
    return next(index for index, tensors in enumerate(inputs) if name in tensors)


def _pick(rule: str, labels: Sequence[str]) -> tuple[str, int]:
    glob, equals, name = rule.rpartition("=")
    if not equals or not glob:
        raise MergeError(f"--pick {rule!r}: must be 'GLOB=INPUT', as 'heads.vqa.*=vqa'")
    return glob, NOBODY if not name else _input(f"--pick {rule!r}", name, labels)


def _input(option: str, name: str, labels: Sequence[str]) -> int:
    if name not in labels:
        close = difflib.get_close_matches(name, labels, 1, 0.5)
        told = f"did you mean {close[0]!r}?" if close else f"the inputs are {', '.join(labels)}"
        raise MergeError(f"{option} names no input: {told}")
    return list(labels).index(name)


def _codebooks(names: Sequence[str]) -> list[str]:
    """Names of vector quantisers' buffers, in modules that have the evidence: all the moving sums."""
    modules = {name.removesuffix(_EVIDENCE[0]) for name in names if name.rpartition(".")[2] == _EVIDENCE[0]}
    if not modules:
        return []
    known = set(names)
    modules = {module for module in modules if all(module + part in known for part in _EVIDENCE)}
    return [name for name in names if name.endswith(CODEBOOK) and _module(name) in modules]


def _module(name: str) -> str:
    module, dot, last = name.rpartition(".")
    return module + dot if last in CODEBOOK else "?"


def read_slices(policy: Policy, labels: Sequence[str], names: Sequence[str]) -> list[Slice]:
    """The policy's slices, read. Raises MergeError for a wrong form, an unknown input, a glob that fits no name."""
    slices: list[Slice] = []
    for rule in policy.slices:
        read = _SLICE.fullmatch(rule)
        if read is None:
            raise MergeError(f"--slice {rule!r}: must be 'NAME[AXIS,INDEX]=INPUT', as 'task_embed[0,3]=vqa'")
        source = _input(f"--slice {rule!r}", read["name"], labels)
        refuse_idle("--slice", rule, read["glob"], names)
        slices.append(Slice(rule, read["glob"], int(read["axis"]), int(read["index"]), source))
    return slices


def slices_of(name: str, slices: Sequence[Slice]) -> list[Slice]:
    """The slices whose glob fits a name."""
    return [item for item in slices if fnmatch.fnmatchcase(name, item.glob)]


def refuse_idle(option: str, rule: str, glob: str, names: Sequence[str]) -> None:
    """Raise MergeError where a glob fits no name."""
    if not any(fnmatch.fnmatchcase(name, glob) for name in names):
        raise MergeError(f"{option} {rule!r} matches no tensor; names look like {', '.join(names[:3])}")


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
        raise MergeError(f"coefficient rule {idle[0]!r} decides no tensor: {_why_idle(idle[0], names)}")
    return resolved


def _why_idle(glob: str, names: Sequence[str]) -> str:
    shadow = any(fnmatch.fnmatchcase(name, glob) for name in names)
    return "an earlier rule decides all it matches" if shadow else f"names look like {', '.join(names[:3])}"
