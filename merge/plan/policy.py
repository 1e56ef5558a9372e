"""The user's explicit choices, and what they decide before any tensor is looked at: which input a name comes from."""

# What users give is checked, whatever its type is said to be.
# pyright: reportUnnecessaryIsInstance=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from merge.checkpoint.formats.elements import ELEMENTS, Element
from merge.errors import MergeError, nearest

if TYPE_CHECKING:
    import torch

MISSING = ("error", "keep-first", "zero-delta", "union")
VOCAB_ROWS = ("error", "keep-first", "zero-delta")
# What a vector quantiser keeps beside its codebook: moving sums of the vectors that chose each code. The entries only
# mean something together, and codes of two codebooks do not correspond.
CODEBOOK = ("embed", "embed_avg", "cluster_size", "initted")
_EVIDENCE = ("embed_avg", "cluster_size")
_SLICE = re.compile(r"(?P<glob>.+)\[(?P<axis>\d+), ?(?P<index>\d+)\]=(?P<name>[^=]+)")
NOBODY = -1

DTYPES = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")  # of results


def dtype_named(name: object) -> Element:
    """Give a result's dtype by its torch name, or by torch's dtype. Raises MergeError with the nearest known one."""
    text = str(name).removeprefix("torch.")
    if text not in DTYPES:
        raise MergeError(f"unknown dtype {text!r}{nearest(text, DTYPES)}")
    return ELEMENTS[text]


def dtype_name(dtype: torch.dtype) -> str:
    """Give a dtype's torch name."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True, repr=False)
class Policy:
    """The user's explicit choices.

    Attributes:
        keep: globs of names left as in the first input that has them.
        drop: globs of names left out of the result.
        pick: "GLOB=INPUT": the names that fit the glob are that input's, unmerged; that it lacks one is an error, but
            for the glob "*", which leaves out what is not the input's. Without an input ("GLOB=") all are left out.
            The first glob that fits a name decides it; after `drop`, before `keep`.
        slices: "GLOB[AXIS,INDEX]=INPUT": of tensors that fit, the slice at that index of the axis is that input's.
        missing: a name that some input lacks is an "error"; or is taken unmerged from the first that has it
            ("keep-first"); or counts as the base's where an expert lacks it ("zero-delta": its task vector is zero); or
            is merged among the inputs that have it, whose shares are scaled to the sum 1 ("union").
        vocab_rows: the same for rows of a vocabulary, and for input channels, that some input lacks: "error",
            "keep-first" or "zero-delta".
        dtype: dtype of the merged floating tensors; None keeps each tensor's own, which inputs must then share.
        compute_dtype: dtype of the arithmetic, float32 or float64; float64 tensors always have float64. Both are given
            as torch's dtypes or their names, and kept as names: a policy needs no torch.
        batchnorm: "average" (statistics are merged like weights) or "from:<input name>".
        allow_nonfinite: accept infinities and NaNs in the result.
        extrapolate: accept coefficients outside [0, 1].
        accept: codes of findings (`merge.plan.findings.FINDINGS`) that would refuse the merge, or warn, and shall not.
        tokenizer: whose vocabulary the result has: "first" (the first input that is no base), "base", "union" (the
            first's, or the base's, tokens and then those that only others have), an input's name, or the path of a
            tokenizer. Rows of embeddings and heads are then merged by their tokens; "" leaves them by their numbers.
        missing_rows: with `tokenizer`, what stands in for the row of a token that an input lacks: the base's and, where
            it has none, the mean of those that have it ("zero-delta", the default beside a base); the same of another
            input ("from:NAME"); that mean ("mean", the default without a base); the input's own row of another token
            ("copy:TOKEN"); "zero"; or it is an "error".
        pad_to_multiple: with `tokenizer`, make the rows a multiple of this; 1 drops those that are no token's. New ones
            are the mean of all others. 0 keeps the rows of inputs that agree in all.
        token_rows: with `tokenizer`, a token, also a new one, and what its row is where an input lacks it: "zero",
            "NAME" (an input's), "NAME:TOKEN" (its row of another token) or "NAME#ROW"; with "always " before it
            everywhere. A mapping, kept as pairs.
        dequantize: take 8-bit floats with scales beside them as the weights that they stand for; the result of these is
            bfloat16 (or `dtype`), and the scales are gone.
        untie: of inputs whose head is their embedding, take it as the head where others have one of their own; the
            result then has one.
        chat_template: what a folder's chat template becomes; "" leaves it as it is in the first input.
    """

    keep: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    pick: tuple[str, ...] = ()
    slices: tuple[str, ...] = ()
    missing: str = "error"
    vocab_rows: str = "error"
    dtype: str | torch.dtype | None = None
    compute_dtype: str | torch.dtype = "float32"
    batchnorm: str = "average"
    allow_nonfinite: bool = False
    extrapolate: bool = False
    accept: tuple[str, ...] = ()
    dequantize: bool = False
    untie: bool = False
    chat_template: str = ""
    tokenizer: str = ""
    missing_rows: str = ""
    pad_to_multiple: int = 0
    token_rows: Mapping[str, str] | tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        """Read one glob as a list of one and a dtype as its name. Raises MergeError for other types."""
        for name in ("keep", "drop", "pick", "slices", "accept"):
            given: Any = getattr(self, name)
            globs: Any = (given,) if isinstance(given, str) else given
            if not isinstance(globs, (tuple, list)) or not all(isinstance(item, str) for item in globs):
                form = "a code or a list of codes" if name == "accept" else "a glob or a list of globs, as ['head.*']"
                raise MergeError(f"{name}={given!r}: must be {form}")
            object.__setattr__(self, name, tuple(globs))
        for name in ("tokenizer", "missing_rows"):
            if not isinstance(getattr(self, name), str):
                raise MergeError(f"{name}={getattr(self, name)!r}: must be a text")
        if type(self.pad_to_multiple) is not int or self.pad_to_multiple < 0:
            raise MergeError(f"pad_to_multiple={self.pad_to_multiple!r}: must be a number of rows")
        rows: Any = self.token_rows
        if not isinstance(rows, (Mapping, tuple)):
            raise MergeError(f"token_rows {rows!r}: must be texts by token, as {{'<think>': 'zero'}}")
        pairs = dict(rows)
        if not all(isinstance(text, str) for pair in pairs.items() for text in pair):
            raise MergeError(f"token_rows {pairs!r}: must be texts by token, as {{'<think>': 'zero'}}")
        object.__setattr__(self, "token_rows", tuple(pairs.items()))
        for name in ("dtype", "compute_dtype"):
            given = getattr(self, name)
            if isinstance(given, str) or type(given).__module__ == "torch":
                object.__setattr__(self, name, dtype_named(given).name)
            elif given is not None or name != "dtype":
                raise MergeError(f"{name}={given!r}: must be a dtype of torch, or its name")

    def __repr__(self) -> str:
        """Name the choices that are not the defaults."""
        made = {
            item.name: getattr(self, item.name) for item in fields(self) if getattr(self, item.name) != item.default
        }
        return f"Policy({', '.join(f'{name}={value!r}' for name, value in made.items())})"


def policy_of(policy: Policy | None) -> Policy:
    """Give the policy, by default one that chooses nothing. Raises MergeError for anything else, such as a dict."""
    if policy is None:
        return Policy()
    if not isinstance(policy, Policy):
        raise MergeError(f"policy={policy!r}: must be a merge.Policy, as Policy(missing='union')")
    return policy


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
    if policy.compute_dtype not in ("float32", "float64"):
        raise MergeError(f"compute_dtype {policy.compute_dtype}: must be float32 or float64")


def statistics_source(batchnorm: object, labels: Sequence[str]) -> int | None:
    """Give the input that all BatchNorm statistics come from, None where they are averaged. Raises MergeError."""
    if batchnorm == "average":
        return None
    kind, _, name = str(batchnorm).partition(":")
    if kind != "from" or name not in labels:
        raise MergeError(f"batchnorm={batchnorm!r}: must be 'average' or 'from:' and one of {', '.join(labels)}")
    return list(labels).index(name)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Tell whether a tensor's name fits one of the globs (`*` crosses dots, case counts)."""
    return bool(patterns) and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def origins(inputs: Sequence[Collection[str]], labels: Sequence[str], policy: Policy) -> dict[str, Origin]:
    """Give the names that one input alone decides (`keep`, `drop`, `pick`, codebooks), each with its origin.

    Raises MergeError for a glob that decides no name (a typing mistake, or hidden by an earlier one) and for an input
    that is not there.
    """
    names = list(dict.fromkeys(name for tensors in inputs for name in tensors))
    holder = {name: index for index, tensors in reversed(list(enumerate(inputs))) for name in tensors}
    for option, patterns in (("keep", policy.keep), ("drop", policy.drop)):
        for pattern in patterns:
            refuse_idle(option, pattern, pattern, names)
    found: dict[str, Origin] = {}
    picks = [_pick(rule, labels) for rule in policy.pick]
    used: set[str] = set()
    lacking: dict[tuple[str, int], list[str]] = {}
    for name in names if policy.keep or policy.drop or picks else ():
        glob, index = next((pick for pick in picks if fnmatch.fnmatchcase(name, pick[0])), ("", NOBODY))
        if matches(name, policy.drop):
            found[name] = Origin(NOBODY, "dropped")
        elif glob:
            used.add(glob)
            has = index != NOBODY and name in inputs[index]
            found[name] = Origin(index, f"picked from {labels[index]}") if has else Origin(NOBODY, "left out")
            if not has and index != NOBODY and glob != "*":
                lacking.setdefault((glob, index), []).append(name)
        elif matches(name, policy.keep):
            found[name] = Origin(holder[name], "kept")
    for (glob, index), absent in lacking.items():
        raise MergeError(_unpicked(glob, labels[index], absent, inputs[index]))
    for glob, _ in picks:
        if glob not in used and glob != "*":
            raise MergeError(f"pick={glob!r} decides no tensor: {why_idle(glob, names)}")
    for name in _codebooks(names):
        everywhere = all(name in tensors for tensors in inputs)
        if name not in found and (everywhere or policy.missing != "error"):
            found[name] = Origin(holder[name], "codebook")
    return found


def _unpicked(glob: str, label: str, absent: Sequence[str], source: Collection[str]) -> str:
    """Say that the input of a pick lacks names that others have, and how it may come to have them."""
    more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
    advice = f"leave what it lacks out with drop={absent[0] if len(absent) == 1 else glob!r}"
    ends = [name for name in source if absent[0].endswith(f".{name}")]
    for end in sorted(ends, key=len, reverse=True)[:1]:
        prefix = absent[0].removesuffix(end)
        advice = f"give its tensors the prefix with rename='{label}:={prefix}', or {advice}"
    return f"pick='{glob}={label}': {label} lacks {', '.join(absent[:3])}{more}, which others have: {advice}"


def _pick(rule: str, labels: Sequence[str]) -> tuple[str, int]:
    glob, equals, name = rule.rpartition("=")
    if not equals or not glob:
        raise MergeError(f"pick={rule!r}: must be 'GLOB=INPUT', as 'heads.vqa.*=vqa'")
    return glob, NOBODY if not name else _input(f"pick={rule!r}", name, labels)


def _input(option: str, name: str, labels: Sequence[str]) -> int:
    if name not in labels:
        close = difflib.get_close_matches(name, labels, 1, 0.5)
        advice = f"did you mean {close[0]!r}?" if close else f"the inputs are {', '.join(labels)}"
        raise MergeError(f"{option} names no input: {advice}")
    return list(labels).index(name)


def _codebooks(names: Sequence[str]) -> list[str]:
    """Names of vector quantisers' buffers, in modules that have the evidence: all the moving sums."""
    known = set(names)
    marked = (name.removesuffix(_EVIDENCE[0]) for name in names if name.rpartition(".")[2] == _EVIDENCE[0])
    modules = {module for module in marked if all(module + part in known for part in _EVIDENCE)}
    return [
        name for name in names if name.rpartition(".")[2] in CODEBOOK and "".join(name.rpartition(".")[:2]) in modules
    ]


def read_slices(policy: Policy, labels: Sequence[str], names: Sequence[str]) -> list[Slice]:
    """Read the policy's slices. Raises MergeError for a wrong form, an unknown input, a glob that fits no name."""
    slices: list[Slice] = []
    for rule in policy.slices:
        read = _SLICE.fullmatch(rule)
        if read is None:
            raise MergeError(f"slices={rule!r}: must be 'NAME[AXIS,INDEX]=INPUT', as 'task_embed[0,3]=vqa'")
        source = _input(f"slices={rule!r}", read["name"], labels)
        refuse_idle("slices", rule, read["glob"], names)
        slices.append(Slice(rule, read["glob"], int(read["axis"]), int(read["index"]), source))
    return slices


def refuse_idle(option: str, rule: str, glob: str, names: Sequence[str]) -> None:
    """Raise MergeError where a glob fits no name."""
    if not any(fnmatch.fnmatchcase(name, glob) for name in names):
        raise MergeError(f"{option}={rule!r} matches no tensor; names look like {', '.join(names[:3])}")


def why_idle(glob: str, names: Sequence[str]) -> str:
    """Say why a glob decides no name: an earlier one hides it, or nothing is called so."""
    hidden = any(fnmatch.fnmatchcase(name, glob) for name in names)
    return "an earlier rule decides all it matches" if hidden else f"names look like {', '.join(names[:3])}"
