"""In which unit the scores of a metric are shown: shares of 1 in %, losses as they are, never two in one mean.

>>> unit_of([{"metric": "accuracy", "value": 0.5}]).text(0.5)
'50.0'
>>> unit_of([{"metric": "nll", "value": 2.0, "unit": "nats", "higher_is_better": False}]).words
'nats, lower is better'
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from experiments.grid.rows import Records

SHARE = "share"  # the unit of rows whose scores are shares of 1, shown in %
TIMES_100 = "× 100"  # the unit of scores that are no share of anything and yet are told times 100
_TOLD_TIMES_100 = ("cider", "bleu", "rouge", "meteor", "spice")  # in rows older than units


class Unit(NamedTuple):
    """How scores of one metric are shown: times `factor`, in the unit `name` ("" for none); whether larger is
    better."""

    factor: float
    name: str
    rises: bool = True

    @property
    def words(self) -> str:
        """Say the unit, and the direction where lower is better; "" where there is nothing to say."""
        return ", ".join(filter(None, (self.name, "" if self.rises else "lower is better")))

    @property
    def top(self) -> str:
        """Name the best of scores."""
        return "highest" if self.rises else "lowest"

    def text(self, value: float) -> str:
        """Write a score, in the rows' own numbers, with the digits that a table needs."""
        shown = self.factor * value
        return f"{shown:.{1 if self.factor != 1 or self.name == '%' or abs(shown) >= 100 else 3}f}"

    def best(self, values: ArrayLike) -> int:
        """Find the best of scores (m,), in any numbers."""
        found = np.asarray(values, dtype=np.float64)
        return int(found.argmax() if self.rises else found.argmin())


SHARES = Unit(100.0, "%")  # of 1


def unit_in_rows(shown: str) -> str:
    """Return the unit that rows name, whose shares are of 1, where scores are printed in the unit `shown`."""
    return SHARE if shown == SHARES.name else shown


def unit_of(rows: Records) -> Unit:
    """Return the unit of rows of one metric.

    Without a unit of their own scores that lie in 0..1 and rise are taken for shares of 1; any other are shown as they
    are.
    """
    first = rows[0]
    name, rises = str(first.get("unit", "")), bool(first.get("higher_is_better", True))
    values = [row["value"] for row in rows if not math.isnan(row["value"])]
    if name == TIMES_100 or (not name and any(word in first["metric"].lower() for word in _TOLD_TIMES_100)):
        return Unit(100.0, TIMES_100, rises)
    if name == SHARE:
        return SHARES._replace(rises=rises)
    if not name and rises and all(0 <= value <= 1 for value in values):
        return SHARES
    return Unit(1.0, name, rises)


def scale_of(rows: Records) -> Unit:
    """Return the unit of rows of one metric, with its name where that alone says what the numbers are: scores of one
    scale may be averaged.

    >>> scale_of([{"metric": "CIDEr-D", "value": 2.5}]).name, scale_of([{"metric": "accuracy", "value": 0.5}]).name
    ('CIDEr-D × 100', '%')
    """
    unit = unit_of(rows)
    return unit._replace(name=f"{rows[0]['metric']} {unit.name}".strip()) if unit.name in ("", TIMES_100) else unit
