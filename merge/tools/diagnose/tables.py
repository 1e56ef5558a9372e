"""How numbers, names and tables are printed."""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from collections.abc import Sequence


class Shown(ABC):
    """A report that shows its text in notebooks, where its `repr` is one line."""

    @abstractmethod
    def text(self) -> str:
        """Write the report as it is printed on a terminal."""

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.text())}</pre>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right, two spaces between."""
    lines = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return ["  ".join(map(_padded, line, widths, range(len(line)))).rstrip() for line in lines]


def _padded(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column == 0 else cell.rjust(width)


def part(title: str, items: Sequence[str]) -> list[str]:
    """Lines of a titled list, at most 20 items of it; none where it is empty."""
    more = [f"  and {len(items) - 20} more"] if len(items) > 20 else []
    return ["", title, *(f"  {item}" for item in items[:20]), *more] if items else []


def size(count: int) -> str:
    """Bytes in decimal units.

    >>> size(1_030_400_000), size(999)
    ('1.03 GB', '999 B')
    """
    return _scaled(count, (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)), f"{count} B")


def amount(count: int) -> str:
    """Write a number of parameters.

    >>> amount(257_600_000), amount(768)
    ('257.60 M', '768')
    """
    return _scaled(count, (("G", 10**9), ("M", 10**6), ("k", 10**3)), str(count))


def _scaled(count: int, units: Sequence[tuple[str, int]], small: str) -> str:
    return next((f"{count / unit:.2f} {name}" for name, unit in units if count >= unit), small)


def number(value: float | None, digits: int = 4) -> str:
    """Write a measured number, "-" where it is undefined."""
    return "-" if value is None else f"{value:.{digits}f}"


def module_of(name: str) -> str:
    """Give the module that a tensor is listed under: at most two components of what holds it.

    >>> module_of("encoder.layers.0.fc1.weight"), module_of("classifier.bias"), module_of("scale")
    ('encoder.layers', 'classifier', 'scale')
    """
    parts = name.split(".")
    return ".".join(parts[:-1][:2] or parts)
