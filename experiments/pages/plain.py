"""A table of words and numbers already written, for pages: what no metric's unit can say."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.grid.escapes import html, markdown
from experiments.statistics.bootstrap import interval


class Plain(NamedTuple):
    """A table: its head, its lines of cells as they are printed, of which the first `words` columns are names and the
    others numbers, and what is to be said of it."""

    head: Sequence[str]
    lines: Sequence[Sequence[str]]
    words: int
    legend: str

    def to_markdown(self) -> str:
        """Write a pipe table with the legend below it."""
        rule = ["---"] * self.words + ["---:"] * (len(self.head) - self.words)
        named = [[*map(markdown, line[: self.words]), *line[self.words :]] for line in self.lines]
        text = "\n".join(f"| {' | '.join(line)} |" for line in ([*map(markdown, self.head)], rule, *named))
        return f"{text}\n\n{markdown(self.legend)}\n"

    def to_html(self) -> str:
        """Write a table element with the legend as its caption."""
        looks = [""] * self.words + [' class="number"'] * (len(self.head) - self.words)
        head = "".join(f'<th scope="col"{look}>{html(name)}</th>' for look, name in zip(looks, self.head, strict=True))
        lines = [
            "".join(f"<td{look}>{html(cell)}</td>" for look, cell in zip(looks, line, strict=True))
            for line in self.lines
        ]
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        return (
            f"<table><caption>{html(self.legend)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )


def with_interval(values: Sequence[float] | np.ndarray, digits: int = 1, draws: np.ndarray | None = None) -> str:
    """Write the mean of values (s,), one a seed, with its 95 % interval where there is one; `draws` (samples, s) are of
    resampled examples."""
    bounds = interval(values, draws)
    value, lo, hi = (f"{round(float(one), digits) + 0.0:.{digits}f}" for one in (np.mean(values), *bounds))
    return value if bounds.lo != bounds.lo else f"{value} [{lo}, {hi}]"
