"""What a finding is, and what a kind of finding is: an entry of `FINDINGS`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from merge.plan.findings.facts import Facts

Severity = Literal["refuse", "warn", "note"]
SHOWN = 5


class Seen(NamedTuple):
    """What a check saw: what it is with the values of both sides, what to do, the tensors that it is about."""

    text: str
    advice: str
    tensors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """One thing that the checks noticed.

    Attributes:
        code: the key of its kind in `FINDINGS`.
        severity: "refuse": no merge unless the code is accepted; "warn": likely to go wrong; "note": worth knowing.
        text: what was seen, with the values of both sides.
        advice: what to do, in Python's words; the command line tells it in options.
        tensors: all names concerned, where the finding is about tensors.
    """

    code: str
    severity: Severity
    text: str
    advice: str
    tensors: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.text}; {self.advice}" if self.advice else self.text


@dataclass(frozen=True)
class Kind:
    """A kind of finding.

    Attributes:
        severity: of all its findings.
        looks: what it looks at.
        means: what is wrong, or may be.
        advice: what to do.
        example: inputs that yield it, and inputs that do not, in a few words: a test makes them.
        check: tells what it sees in the facts; None for what only `doctor` tells, which reads the values.
        acceptable: whether `accept` lets it pass; what cannot be computed at all is not.
        whole: asked of whole models only, not of results that are put together of layers.
    """

    severity: Severity
    looks: str
    means: str
    advice: str
    example: tuple[str, str]
    check: Callable[[Facts], Iterable[Seen]] | None = None
    acceptable: bool = True
    whole: bool = False


# -- words ------------------------------------------------------------------------------------------------------------


def listed(names: Collection[str], shown: int = SHOWN) -> str:
    """Give the first few names and how many more there are."""
    more = len(names) - shown
    return ", ".join(list(names)[:shown]) + (f" and {more:,} more" if more > 0 else "")


def counted(count: int, one: str, many: str = "") -> str:
    """`1 tensor`, `1,667 tensors`, `2 matrices`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def by_value(labels: Sequence[str], values: Sequence[str]) -> str:
    """`float32 in base, vqa and float16 in caption`."""
    groups: dict[str, list[str]] = {}
    for label, value in zip(labels, values, strict=True):
        groups.setdefault(value, []).append(label)
    return " and ".join(f"{value} in {', '.join(group)}" for value, group in groups.items())


def chosen(option: str, names: Collection[str], among: Collection[str]) -> str:
    """Give an argument whose globs match these names and no other of `among`, at most three globs.

    >>> chosen("keep", ["head.weight", "head.bias", "scale"], ["head.weight", "head.bias", "scale", "body.scale"])
    "keep=['head.*', 'scale']"
    """
    mine = set(names)
    taken = {prefix for name in among if name not in mine for prefix in prefixes(name)}
    found: dict[str, None] = {}
    for name in names:
        free = next((prefix for prefix in prefixes(name) if prefix not in taken), None)
        found[name if free is None else free + "*"] = None
    globs = list(found)[:3]
    more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
    return f"{option}={globs[0]!r}" if len(found) == 1 else f"{option}={globs!r}{more}"


def prefixes(name: str) -> list[str]:
    """`a.b.c` as `a.`, `a.b.`."""
    parts = name.split(".")
    return [".".join(parts[:end]) + "." for end in range(1, len(parts))]


def tally(kinds: Mapping[str, str]) -> str:
    """Give how many names of each kind there are: `3 float8_e4m3fn`."""
    return ", ".join(f"{count:,} {kind}" for kind, count in Counter(kinds.values()).items())
