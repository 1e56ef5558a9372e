"""Methods of merging that a study tries, each with the values to try of its parameters."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.errors import StudyError
from merge import METHODS

ALL = "all"  # every method that merges weights alone, each at the values that its entry calls worth trying
Sweep = tuple[str, Mapping[str, Sequence[Any]]]  # a method, and the values to try of its parameters by name


def sweeps_of(given: str | Iterable[Any], study: str, *, has_base: bool) -> tuple[Sweep, ...]:
    """Return methods as a study tries them: keys of METHODS, or `(name, {parameter: [values]})`; of a parameter without
    default the usual value. "all" is every one that takes two experts or more, at its entry's `grid`.

    StudyError, with the study's name, for a method that there is not, that lacks what it needs, or that takes a base
    where there is none.
    """
    named = [given] if isinstance(given, str) else list(given)
    one = len(named) == 2 and isinstance(named[1], Mapping)  # ("ties", {"density": [0.1, 0.3]}) without another tuple
    listed = [
        each
        for method in ([tuple(named)] if one else named)
        for each in (_all(has_base) if method == ALL else [method])
    ]
    return tuple(_sweep(method, study, has_base) for method in listed)


def left_out(there: Iterable[str], experts: int, *, has_base: bool) -> dict[str, str]:
    """Return the methods that are not there, and why a merge of so many experts has none of them.

    >>> left_out(set(METHODS) - {"slerp", "fisher"}, 4, has_base=True)
    {'slerp': 'takes 2 experts', 'fisher': 'needs statistics of every expert'}
    """
    known = set(there)
    return {name: _why_not(name, experts, has_base) or "not asked for" for name in METHODS if name not in known}


def _why_not(method: str, experts: int, has_base: bool) -> str:
    """Say why a method cannot merge so many experts in a study; "" where it can."""
    entry, most = METHODS[method], METHODS[method].inputs[1]
    if entry.statistics:
        return "needs statistics of every expert"
    if entry.takes_base and not has_base:
        return "starts from a base"
    if entry.ordered:
        return "averages checkpoints of one run"
    return f"takes {most} expert{'s' * (most > 1)}" if most is not None and experts > most else ""


def _all(has_base: bool) -> list[Sweep]:
    return [(name, entry.grid) for name, entry in METHODS.items() if not _why_not(name, 2, has_base)]


def plane(points: int = 21, low: float = -0.5, high: float = 1.5) -> Sweep:
    """Return a method that has so many points a side in the plane through the base and two experts.

    They are base + a * (first - base) + b * (second - base), with a and b from `low` to `high`: the base lies at (0,
    0), the experts at (1, 0) and (0, 1), their average at (0.5, 0.5).

    >>> plane(3, 0, 1)[1]["weights"][:4]
    ((0.0, 0.0), (0.0, 0.5), (0.0, 1.0), (0.5, 0.0))
    """
    parts = points - 1
    places = [(low * parts + (high - low) * part) / parts for part in range(points)]
    return "task-arithmetic", {"scale": (1.0,), "weights": tuple(itertools.product(places, places))}


def sweep_in(text: str) -> str | Sweep:
    """Read a method from a word of the command line: NAME, or NAME:PARAMETER=VALUE,VALUE with any such parts.

    >>> sweep_in("ties"), sweep_in("ties:density=0.1,0.3")
    ('ties', ('ties', {'density': [0.1, 0.3]}))
    """
    name, *parts = text.split(":")
    values: dict[str, list[Any]] = {}
    for part in parts:
        parameter, sign, listed = part.partition("=")
        if not sign:
            raise StudyError(f"method {text!r}: write a parameter as {name}:{parameter or 'PARAMETER'}=VALUE,VALUE")
        values[parameter] = [_value(one) for one in listed.split(",")]
    return (name, values) if values else name


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _sweep(given: Any, study: str, has_base: bool) -> Sweep:
    method, values = (given, {}) if isinstance(given, str) else given if isinstance(given, tuple) else (given, None)
    if method not in METHODS:
        raise _unknown(study, "no method", method, METHODS)
    entry = METHODS[method]
    if entry.statistics:
        raise StudyError(f"study {study}: {method} needs statistics of every expert: merge it to a file first")
    if entry.takes_base and not has_base:
        raise StudyError(f"study {study}: {method} starts from a base: give pretrained=")
    if not isinstance(values, Mapping):
        raise StudyError(f"study {study}: method {given!r:.80}: give a name, or (name, {{parameter: [values]}})")
    for name in values:
        if name not in entry.parameters or name == "ratio":
            known = (one for one in entry.parameters if one != "ratio")
            raise _unknown(study, f"{method} has no parameter to sweep", name, known)
    usual = {name: (one.example,) for name, one in entry.parameters.items() if one.required and name != "ratio"}
    listed = {name: tuple(own) if isinstance(own, (list, tuple)) else (own,) for name, own in values.items()}
    listed = {**usual, **listed}
    if empty := [name for name, own in listed.items() if not own]:
        raise StudyError(f"study {study}: {method} has no value of {empty[0]} to try")
    return method, listed


def _unknown(study: str, what: str, name: object, known: Iterable[str]) -> StudyError:
    return StudyError(f"study {study}: {what} {name!r}: choose of {', '.join(known)}")
