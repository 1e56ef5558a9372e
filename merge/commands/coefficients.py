"""How coefficients are written on the command line: numbers, weights, parameters of methods, rules by module."""

from __future__ import annotations

import contextlib
import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merge.commands.options import shown
from merge.errors import MergeError, meant

if TYPE_CHECKING:
    from merge.methods import Method, Parameter
    from merge.recipe.recipe import Recipe

SWITCH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
WeightsFrom = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Weights by name: JSON {name: weight}, or CSV with a line 'name,weight' each."),
]


Statistics = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=FILE", help="For fisher and regmean: what `merge.statistics` wrote of an input; one for each."
    ),
]


@dataclass(frozen=True)
class Weights:
    """Options that give every input its weight."""

    weight: Annotated[
        list[str] | None,
        typer.Option(
            "--weight",
            "-w",
            metavar="WEIGHT[,WEIGHT...]",
            help="Weights in turn: 0.5,0.3,0.2 or -w for each; 1/3, 20%.",
        ),
    ] = None
    weights_from: WeightsFrom = None

    def of(self, names: Sequence[str]) -> dict[str, list[float]]:
        """Give the parameter `weights` for inputs of these names, nothing where none are given. Raises MergeError."""
        if self.weights_from is None:
            return {"weights": numbers("--weight", self.weight)} if self.weight else {}
        if self.weight:
            raise MergeError(f"--weight and --weights-from {self.weights_from}: give one of them")
        return {"weights": read_weights(self.weights_from, names)}


def number(option: str, text: str) -> float:
    """Give a number written as 0.4, 40% or 2/5.

        >>> number("--ratio", "40%"), number("--ratio", "1/4")
        (0.4, 0.25)

    Raises MergeError naming the option and the text.
    """
    above, slash, below = text.partition("/")
    try:
        if text.endswith("%"):
            return float(text[:-1]) / 100
        return float(above) / float(below) if slash else float(text)
    except (ValueError, ZeroDivisionError) as error:
        raise MergeError(f"{option} {shown(text)!r}: give a number, as 0.4, 40% or 2/5") from error


def numbers(option: str, texts: Sequence[str]) -> list[float]:
    """Numbers with commas between them, in one text or several. Raises MergeError."""
    found: list[float] = []
    for text in texts:
        try:
            found += [number(option, part.strip()) for part in text.split(",")]
        except MergeError as error:
            raise (
                error
                if "," not in text
                else MergeError(f"{option} {shown(text)!r}: give numbers with commas between them, as 0,1/4,50%")
            ) from error
    return found


def read_weights(path: Path, names: Sequence[str]) -> list[float]:
    """The weights of these inputs from a JSON object or a CSV file. Raises MergeError for names that do not agree."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            found: dict[str, Any] = json.loads(text)
        else:
            rows = [row for row in csv.reader(text.splitlines()) if row]
            found = {name: weight for name, weight in rows if (name, weight) != ("name", "weight")}
        items = {name: number(f"{path}: {name}", str(weight)) for name, weight in found.items()}
    except (OSError, ValueError, AttributeError) as error:
        if isinstance(error, MergeError):
            raise
        raise MergeError(f"{path}: give JSON as {{name: weight}}, or lines of CSV as name,weight ({error})") from error
    if set(items) != set(names):
        raise MergeError(f"{path}: has weights of {', '.join(items)}; the inputs are {', '.join(names)}")
    return [items[name] for name in names]


def summing_to_one(weights: Sequence[float], count: int, *, normalize: bool, extrapolate: bool) -> list[float]:
    """Shares of `count` inputs, divided by their sum if asked for. Raises MergeError for a sum that nobody meant."""
    total = math.fsum(weights)
    if normalize and total:
        return [weight / total for weight in weights]
    whole = len(weights) == count and total and math.isfinite(total)  # the engine tells what else can be wrong
    if whole and not extrapolate and not math.isclose(total, 1, abs_tol=1e-6):
        listed = ", ".join(f"{weight:g}" for weight in weights)
        raise MergeError(
            f"weights {listed} sum to {total:g}, not to 1: pass --normalize to divide them by their sum, or "
            "--extrapolate to mean them"
        )
    return list(weights)


def layers_taken(texts: Sequence[str], names: Sequence[str]) -> dict[str, tuple[dict[str, tuple[int, int]], ...]]:
    """Give the layers that a result is made of, as a recipe has them, from [LIST=][NAME:]FROM-TO,...

        >>> layers_taken(["0-15,b:8-23,3"], ["a", "b"])
        {'': ({'a': (0, 16)}, {'b': (8, 24)}, {'a': (3, 4)})}

    Raises MergeError naming the text.
    """
    found: dict[str, list[dict[str, tuple[int, int]]]] = {}
    for text in texts:
        which, equals, rest = text.rpartition("=")
        for item in (rest if equals else text).split(","):
            name, colon, span = item.strip().rpartition(":")
            first, dash, last = span.partition("-")
            name = name if colon else names[0]
            if not (first.isdecimal() and (last.isdecimal() or not dash)) or int(last or first) < int(first):
                raise MergeError(
                    f"--take {shown(text)!r}: {shown(item)!r} is no range of layers: give 0-15, 3 or NAME:8-23"
                )
            if name not in names:
                raise MergeError(f"--take {shown(text)!r}: {name} is no checkpoint here: they are {', '.join(names)}")
            found.setdefault(which, []).append({name: (int(first), int(last or first) + 1)})
    return {which: tuple(ranges) for which, ranges in found.items()}


def parameters_of(name: str, method: Method, given: Sequence[str]) -> dict[str, Any]:
    """Give the parameters of a method from NAME=VALUE and NAME=GLOB=VALUE; globs in turn, the value for the rest last.

    Raises MergeError for a name that the method does not have, a value that it cannot take, a glob without a rest.
    """
    rules: dict[str, dict[str, Any]] = {}
    for text in given:
        key, equals, rest = text.partition("=")
        if equals and key not in method.parameters:
            hint = meant(key, method.parameters) or ";"
            raise MergeError(f"-p {shown(text)!r}: there is no {shown(key)!r}{hint} {takes(name, method)}")
        if not equals:
            raise MergeError(f"-p {shown(text)!r}: give NAME=VALUE or NAME=GLOB=VALUE; {takes(name, method)}")
        glob, _, value = rest.rpartition("=")
        rules.setdefault(key, {})[glob or "*"] = _value(key, value, method.parameters[key])
    found: dict[str, Any] = {}
    for key, values in rules.items():
        globs = {glob: value for glob, value in values.items() if glob != "*"}
        rest = values.get("*", method.parameters[key].default)
        if globs and rest is None:
            raise MergeError(
                f"-p {key}: the globs {', '.join(globs)} leave a rest: give it a value with -p {key}=VALUE"
            )
        found[key] = {**globs, "*": rest} if globs else rest
    return found


def _value(key: str, text: str, parameter: Parameter) -> Any:
    """A value as its parameter is: true or false, names, a number, or one for every input."""
    option = f"-p {key}"
    if ":" in text and parameter.kind is not bool:  # along the depth, as 0:0.5:1
        each = [_value(key, part.replace(":", ","), replace(parameter, each=True)) for part in text.split(",")]
        runs: list[Any] = [
            {"gradient": one} if ":" in part else one for part, one in zip(text.split(","), each, strict=True)
        ]
        if len(runs) > 1 and not parameter.each:
            raise MergeError(f"{option}={shown(text)}: takes one value for all inputs, {parameter.range}")
        return runs if len(runs) > 1 else runs[0]
    if parameter.kind is bool:
        if text.lower() not in SWITCH:
            raise MergeError(f"{option}={shown(text)}: give true or false ({parameter.help})")
        return SWITCH[text.lower()]
    if parameter.kind is tuple:
        return text.split(",")
    if parameter.input or text in parameter.words:
        return text
    values: list[float] = []
    if parameter.kind is not str:
        with contextlib.suppress(MergeError):
            values = numbers(option, [text])
    if not values:
        raise MergeError(f"{option}={shown(text)}: give {parameter.range} ({parameter.help})")
    if len(values) > 1 and not parameter.each:
        raise MergeError(f"{option}={shown(text)}: takes one value for all inputs, {parameter.range}")
    if parameter.kind is int and all(value.is_integer() for value in values):
        values = [int(value) for value in values]
    return values if len(values) > 1 else values[0]


def with_statistics(recipe: Recipe, given: Sequence[str]) -> Recipe:
    """Give a recipe with a file of statistics for each of its inputs. Raises MergeError where one has none."""
    from merge.methods import METHODS
    from merge.recipe.recipe import Input

    if not given:
        return recipe
    if not METHODS[recipe.method].statistics:
        raise MergeError(f"--statistics: {recipe.method} takes none; fisher and regmean do")
    files: dict[str, Path] = {}
    names = [item.name for item in recipe.inputs]
    for text in given:
        name = max((name for name in names if text.startswith(f"{name}=")), key=len, default=None)
        if name is None:
            raise MergeError(f"--statistics {shown(text)!r}: give NAME=FILE; the inputs are {', '.join(names)}")
        files[name] = Path(text.removeprefix(f"{name}="))
    lacking = [name for name in names if name not in files]
    if lacking:
        raise MergeError(f"--statistics: none are given for {', '.join(lacking)}")
    collected = [Input(f"statistics of {name}", files[name]) for name in names]
    return replace(recipe, inputs=(*recipe.inputs, *collected))


def takes(name: str, method: Method) -> str:
    """Give what a method takes, for errors: "ties takes density (0 to 1), weights (any), ..."."""
    listed = ", ".join(f"{key} ({parameter.range})" for key, parameter in method.parameters.items())
    return f"{name} takes {listed or 'no parameters'}"


def by_name(values: Mapping[str, Any]) -> str:
    """Parameters as they are written on the command line."""
    return " ".join(f"-p {key}={value:g}" for key, value in values.items())
