"""How findings are worded: sentences that count what was told apart, numbers with their intervals and units."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.grid.rows import Records
from experiments.grid.units import Unit, scale_of, unit_of
from experiments.statistics.bootstrap import over_seeds
from experiments.statistics.contrasts import Contrast, difference, draws_of, signs
from experiments.statistics.tests import Examples

Where = tuple[str, str]  # task and split
RETENTION = Unit(100.0, "% of the own expert's score")


@dataclass(frozen=True)
class Finding:
    """A sentence, the numbers behind it, a line each, and what was not told apart, in words ("" for nothing)."""

    text: str
    details: tuple[str, ...] = ()
    open: str = ""

    def __str__(self) -> str:
        return "\n".join([f"{self.text}{f' Not told apart: {self.open}.' if self.open else ''}", *self.details])


def by_place(rows: Records) -> dict[Where, dict[int, dict]]:
    """Return rows by task and split, and seed."""
    found: dict[Where, dict[int, dict]] = defaultdict(dict)
    for row in rows:
        found[row["task"], row["split"]][row["seed"]] = row
    return found


def gaps_of(compared: Mapping, scores: Examples) -> dict:
    """Test of every pair of models, by seed, by how much the first is better, in the unit of their metric."""
    rows = [row for models in compared.values() for model in models for row in model.values()]
    draws = draws_of(rows, scores)
    found = {
        place: difference(one, other, scores, rises=_rises(one), draws=draws)
        for place, (one, other) in compared.items()
    }
    return {place: gap for place, gap in found.items() if gap is not None}


def _rises(model: Mapping[int, Mapping]) -> bool:
    return unit_of([dict(row) for row in model.values()]).rises


def gap_words(gap: Contrast, rows: Records, task: str) -> str:
    """Write by how much a model is better, in the unit of the task's metric."""
    scale = scale_of([row for row in rows if row["task"] == task])
    lower = " (lower is better: + is better)" * (not scale.rises)
    return f"{number(gap, scale.factor)} {unit_words(scale)}{lower}"


def unit_words(scale: Unit) -> str:
    """Name what differences of scores are counted in."""
    return "points" if scale.name == "%" else scale.name


def number(gap: Contrast, factor: float) -> str:
    """Write a difference with its interval, times a factor."""
    form = "+.1f" if factor != 1 or abs(gap.value) >= 100 else "+.3g"
    bounds = "" if gap.lo != gap.lo else f" [{factor * gap.lo:{form}}, {factor * gap.hi:{form}}]"
    return f"{factor * gap.value:{form}}{bounds}"


def seeds_words(gap: Contrast, factor: float) -> str:
    """Write what the seeds say alone: Student's interval and the value of each; "" for one seed."""
    if len(gap.seeds) < 2:
        return ""
    form = "+.1f" if factor != 1 else "+.3g"
    lo, hi = over_seeds(gap.seeds)
    each = "/".join(f"{factor * value:{form}}" for value in gap.seeds)
    return f"; t over seeds [{factor * lo:{form}}, {factor * hi:{form}}], seeds {each}"


def versus(better: int, worse: int, of: int, other: str, times: str = "comparison") -> str:
    """Write in how many comparisons something was better and worse than another, in words that stand behind "is".

    >>> versus(3, 0, 3, "the base"), versus(1, 2, 4, "the base")
    ('better than the base in all 3 comparisons', 'better than the base in 1 of 4 comparisons and worse in 2')
    >>> versus(0, 0, 1, "the base")
    'not told apart from the base'
    """
    parts = [(better, "better"), (worse, "worse")]
    seen = [(count, word) for count, word in parts if count]
    if not seen:
        return f"not told apart from {other}" + f" in any of {of} {times}s" * (of > 1)
    (count, word), *more = seen
    if of == 1:
        return f"{word} than {other}"
    often = f"in all {of} {times}s" if count == of else f"in {count} of {of} {times}s"
    return f"{word} than {other} {often}" + "".join(f" and {word} in {count}" for count, word in more)


def counted(gaps: Sequence[Contrast], what: str) -> str:
    """Write how many means are above 0, and how many of them are told apart after Holm, also at these seeds alone."""
    means = sum(gap.value > 0 for gap in gaps)
    text = f"{means} of {len(gaps)} {what} in the mean, {signs(gaps).count(1)} of them after Holm's correction"
    if any(len(gap.seeds) > 1 and gap.p_here == gap.p_here for gap in gaps):
        text += f" (at these very seeds, for other examples alone, {signs(gaps, here=True).count(1)})"
    return text


def listed(parts: Sequence[str]) -> str:
    """Join parts by commas and "and"."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))
