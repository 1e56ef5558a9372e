"""The methods as tables, for the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from merge.methods import METHODS, Method, Parameter


def method_table(more: Mapping[str, Mapping[str, str]]) -> str:
    """Every method in Markdown: formula, inputs, parameters, edge cases, source; `more` are columns by method."""
    rows = [
        [
            f"`{name}`",
            f"`{method.formula}`",
            _inputs(method),
            ", ".join(f"`{key}`" for key in method.parameters) or "-",
            method.edges,
            *(column[name] for column in more.values()),
            method.source,
        ]
        for name, method in METHODS.items()
    ]
    return markdown(["method", "formula", "inputs", "parameters", "at the edges", *more, "source"], rows)


def parameter_table() -> str:
    """Every parameter in Markdown: what it does, its default and range, the methods that have it."""
    found: dict[tuple[str, Parameter], list[str]] = {}
    for name, method in METHODS.items():
        for key, parameter in method.parameters.items():
            found.setdefault((key, parameter), []).append(f"`{name}`")
    rows = [
        [
            f"`{key}`" + (" of each" if parameter.each else ""),
            parameter.help,
            _default(parameter),
            _range(parameter),
            ", ".join(methods),
        ]
        for (key, parameter), methods in found.items()
    ]
    return markdown(["parameter", "what it is", "default", "range", "of"], rows)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; bars in cells are escaped."""
    lines = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _inputs(method: Method) -> str:
    low, high = method.inputs
    count = f"{low}" if low == high else f"{low} or more"
    return f"base and {count}" if method.takes_base else count


def _default(parameter: Parameter) -> str:
    if parameter.simplex:
        return "equal"
    if parameter.default is None:
        return "required"
    return str(parameter.default).lower() if parameter.kind is bool else f"{parameter.default:g}"


def _range(parameter: Parameter) -> str:
    if parameter.kind is bool:
        return "true, false"
    kind = "whole, " if parameter.kind is int else ""
    low, high = parameter.low, parameter.high
    if low == float("-inf"):
        return f"{kind}any"
    bounds = f"{low:g} or more" if high == float("inf") else f"{low:g} to {high:g}"
    return kind + bounds + (", sum 1" if parameter.simplex else "")
