"""The forms of mergekit's recipes: slices, models and modules, each with its parameters."""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merge.errors import MergeError, nearest, shortened
from merge.methods import Mergekit

# Parameters that change how mergekit computes, not what.
WITHOUT_EFFECT = ("int8_mask", "eps")


@dataclass(frozen=True)
class Source:
    """A model of a slice: its layers [from, to), None for all, and its own parameters."""

    path: str
    span: tuple[int, int] | None
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Stretch:
    """An output slice."""

    sources: tuple[Source, ...]
    parameters: Mapping[str, Any]

    @property
    def given(self) -> list[Mapping[str, Any]]:
        """All parameters that are given here."""
        return [self.parameters, *(source.parameters for source in self.sources)]


def stretches_of(data: Mapping[str, Any]) -> dict[str, tuple[Stretch, ...]]:
    """Give the slices of a recipe by module; `models` are one slice, of all layers. Raises MergeError."""
    forms = [key for key in ("models", "slices", "modules") if data.get(key) is not None]
    if len(forms) > 1:
        raise MergeError(f"{' and '.join(forms)}: a recipe has one of them")
    modules = data.get("modules")
    if modules is None:
        return {"": _stretches(data)}
    if not isinstance(modules, Mapping) or not modules:
        raise MergeError("modules: must be a mapping from names to slices or models")
    found: dict[str, tuple[Stretch, ...]] = {}
    for name, given in modules.items():
        module: Any = given if isinstance(given, Mapping) else {}
        _refuse_unknown(module, ("slices", "models", "parameters"), f"the module {name}")
        mine = parameters_in(module.get("parameters"), f"the module {name}")
        its = _stretches(module)
        found[str(name)] = tuple(Stretch(item.sources, {**mine, **item.parameters}) for item in its)
    return found


def _stretches(data: Mapping[str, Any]) -> tuple[Stretch, ...]:
    if data.get("slices") is None:
        return (Stretch(tuple(_source(item, ranged=False) for item in _listed(data, "models")), {}),)
    found: list[Stretch] = []
    for number, item in enumerate(_listed(data, "slices")):
        given: Any = item if isinstance(item, Mapping) else {}
        _refuse_unknown(given, ("sources", "parameters"), f"slices[{number}]")
        sources = tuple(_source(one, ranged=True) for one in _listed(given, "sources"))
        paths = [source.path for source in sources]
        double = next((path for path in paths if paths.count(path) > 1), None)
        if double is not None:
            raise MergeError(f"slices[{number}]: {shortened(double)} is named twice; mergekit takes one of the two")
        found.append(Stretch(sources, parameters_in(given.get("parameters"), f"slices[{number}]")))
    return tuple(found)


def _source(data: Any, *, ranged: bool) -> Source:
    what, keys = (
        ("models", ("model", "parameters")) if not ranged else ("sources", ("model", "layer_range", "parameters"))
    )
    if not isinstance(data, Mapping) or "model" not in data:
        raise MergeError(f"an entry of {what} must have the key 'model', not be {shortened(data)}")
    _refuse_unknown(data, keys, f"an entry of {what}")
    span: Any = data.get("layer_range") if ranged else None
    ends = list(span) if isinstance(span, Sequence) and not isinstance(span, str) else []
    if ranged and (len(ends) != 2 or not all(type(end) is int for end in ends) or not 0 <= ends[0] < ends[1]):
        raise MergeError(
            f"layer_range of {shortened(data['model'])} must be [from, to), as [0, 16], not {shortened(span)}"
        )
    parameters = parameters_in(data.get("parameters"), str(data["model"]))
    return Source(model_path(data["model"]), (ends[0], ends[1]) if ranged else None, parameters)


def _refuse_unknown(data: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    for key in data:
        if key not in known:
            raise MergeError(f"{what} has no key {shortened(key)}{nearest(str(key), known)}")


def model_path(model: Any) -> str:
    """Give the path or name of a model, with its revision. Raises MergeError for adapters."""
    if isinstance(model, Mapping):
        _refuse_unknown(model, ("model", "lora", "path", "revision", "override_architecture"), "a model")
        if model.get("lora") is not None:
            raise MergeError("lora: adapters are not supported; merge the adapter into its model first")
        if isinstance(model.get("model"), (str, Mapping)):
            return model_path(model["model"])
        revision = model.get("revision")
        model = model.get("path") if revision is None else f"{model.get('path')}@{revision}"
    if not isinstance(model, str):
        raise MergeError(f"model {shortened(model)}: must be a path, or a name on the hub")
    if "+" in model:
        raise MergeError(
            f"model {shortened(model)}: adapters are not supported; merge the adapter into its model first"
        )
    return model


def _listed(data: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = data.get(key)
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise MergeError(f"the recipe needs a list of {key}")
    return value


def parameters_in(value: Any, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise MergeError(f"{where}: parameters must be a mapping, not {shortened(value)}")
    return value


def check_keys(method: str, form: Mergekit, given: Sequence[Mapping[str, Any]]) -> None:
    relative = (form.relative[0],) if form.relative else ()
    known = (*form.each, *form.whole, *relative, *WITHOUT_EFFECT)
    for parameters in given:
        for key in parameters:
            if key not in known:
                raise MergeError(f"{method} has no parameter {shortened(key)}{nearest(str(key), known)}")
