"""The methods as a table, for the documentation."""

from __future__ import annotations

from merge.methods import METHODS, Method, Parameter


def table() -> str:
    """Every method in Markdown: formula, inputs, parameters, edge cases, source."""
    lines = ["| method | formula | inputs | parameters | at the edges | source |", "|---|---|---|---|---|---|"]
    for name, method in METHODS.items():
        parameters = ", ".join(_parameter(key, value) for key, value in method.parameters.items()) or "-"
        cells = [f"`{name}`", f"`{method.formula}`", _inputs(method), parameters, method.edges or "-", method.source]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def parameter_table() -> str:
    """Every parameter in Markdown: what it does, its default and range, the methods that have it."""
    found: dict[str, tuple[Parameter, list[str]]] = {}
    for name, method in METHODS.items():
        for key, parameter in method.parameters.items():
            found.setdefault(f"`{key}`: {parameter.help}", (parameter, []))[1].append(f"`{name}`")
    lines = ["| parameter | default | range | of |", "|---|---|---|---|"]
    for text, (parameter, methods) in found.items():
        lines.append(f"| {text} | {_default(parameter)} | {_range(parameter)} | {', '.join(methods)} |")
    return "\n".join(lines) + "\n"


def _parameter(name: str, parameter: Parameter) -> str:
    each = " of each" if parameter.each else ""
    return f"`{name}`{each} ({_default(parameter)})"


def _default(parameter: Parameter) -> str:
    if parameter.simplex:
        return "equal"
    return (
        "required"
        if parameter.default is None
        else f"{parameter.default:g}"
        if _is_number(parameter)
        else _switch(parameter)
    )


def _range(parameter: Parameter) -> str:
    if parameter.kind is bool:
        return "true, false"
    low, high = f"{parameter.low:g}", f"{parameter.high:g}"
    bounds = {"-inf": "", "inf": ""}
    text = f"{bounds.get(low, low)} to {bounds.get(high, high)}".strip()
    return ("any" if text == "to" else text) + (", sum 1" if parameter.simplex else "")


def _is_number(parameter: Parameter) -> bool:
    return parameter.kind is not bool


def _switch(parameter: Parameter) -> str:
    return "true" if parameter.default else "false"


def _inputs(method: Method) -> str:
    low, high = method.inputs
    count = f"{low}" if low == high else f"{low} or more"
    return f"base and {count}" if method.takes_base else count
