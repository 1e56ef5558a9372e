"""mergekit's YAML recipes, read as ours.

Supported are `models`, `base_model`, `merge_method`, `dtype`, `out_dtype` and the parameters of every method that is
also ours, as numbers, as lists by tensor name (`filter`) and as gradients over the layers. Anything else is an error.
Numbers are not always mergekit's to the last bit: arithmetic is in float32 and rounded once, so that `dtype` is the
dtype of the result and not of the sums.
"""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import contextlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge.checkpoint.hub import is_hub, joined
from merge.checkpoint.open import open_checkpoint
from merge.errors import MergeError, nearest, shortened
from merge.methods import METHODS, Mergekit
from merge.plan.policy import Policy
from merge.recipe.recipe import Input, Recipe

_KEYS = ("merge_method", "models", "base_model", "parameters", "dtype", "out_dtype", "name")
_UNSUPPORTED = {
    "slices": "assembling layers of different models is not supported; whole models only",
    "modules": "models of several modules are not supported; merge each module's checkpoint",
    "tokenizer_source": "tokenizers are not merged; embeddings are merged row by row",
    "tokenizer": "tokenizers are not merged; embeddings are merged row by row",
    "chat_template": "templates are not merged; copy the one that the merged model shall have",
}
_LONGEST = 1 << 18  # bytes of a recipe in YAML, which is read by Python code, slowly
_LARGEST = 1e38  # sums of larger numbers may have no float
_MERGED = 10_000  # entries that merge keys may bring
# Parameters that change how mergekit computes, not what.
_WITHOUT_EFFECT = ("int8_mask", "eps")


def read_mergekit(path: Path) -> Recipe:
    """Read a YAML recipe of mergekit. Relative paths of models are relative to the recipe's folder.

    Raises MergeError naming what is unknown (with the nearest known key) or unsupported, and without PyYAML.
    """
    try:
        import yaml  # optional: the extra `yaml`
    except ImportError:
        raise MergeError(f"{path}: reading YAML needs PyYAML: pip install 'unival-merge[yaml]'") from None

    class Loader(yaml.SafeLoader):
        """A safe loader whose merge keys ("<<") cannot multiply: a small file of them would fill the memory."""

        left = _MERGED

        def flatten_mapping(self, node: Any) -> None:
            """Count what the merge keys of a mapping bring before it is brought."""
            for key, value in node.value:
                if key.tag == "tag:yaml.org,2002:merge":
                    for item in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                        if isinstance(item, yaml.MappingNode):
                            self.flatten_mapping(item)
                            self.left -= len(item.value)
                    if self.left < 0:
                        raise yaml.YAMLError(f"its merge keys (<<) bring more than {_MERGED:,} entries")
            super().flatten_mapping(node)

    try:
        if path.stat().st_size > _LONGEST:
            raise MergeError(f"{path}: longer than {_LONGEST:,} bytes, which no recipe is")
        data = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (OSError, ValueError, TypeError, OverflowError, yaml.YAMLError, RecursionError) as error:
        if isinstance(error, MergeError):
            raise
        raise MergeError(f"{path}: not a YAML file: {shortened(error)}") from error
    try:
        return from_mergekit(data, path.parent)
    except MergeError as error:
        raise MergeError(f"{path}: {error}") from error


def from_mergekit(data: Any, folder: Path = Path()) -> Recipe:
    """A recipe of mergekit, as plain data, as one of ours; the first model's header is read for filters and gradients.

        >>> models = [{"model": name, "parameters": {"weight": 0.5}} for name in ("a.pt", "b.pt")]
        >>> from_mergekit({"merge_method": "linear", "models": models}).parameters["weights"]
        [0.5, 0.5]

    Raises MergeError.
    """
    if not isinstance(data, Mapping) or "merge_method" not in data:
        raise MergeError("not a recipe of mergekit: it has no 'merge_method'")
    for key in data:
        if key in _UNSUPPORTED:
            raise MergeError(f"{key}: {_UNSUPPORTED[key]}")
        if key not in _KEYS:
            raise MergeError(f"a recipe has no key {shortened(key)}{nearest(str(key), _KEYS)}")
    method = str(data["merge_method"])
    ours = named(method, with_base=data.get("base_model") is not None)
    form = METHODS[ours].mergekit[method]
    models = [_Model.read(item) for item in _listed(data, "models")]
    common = _parameters(data.get("parameters"), "parameters")
    _check_keys(method, form, [common, *(model.parameters for model in models)])
    base, inputs = _inputs(method, ours, models, data.get("base_model"))
    paths = [model.path for model in ([] if base is None else [base]) + inputs]
    labels = _labels(paths)
    sources = tuple(Input(label, joined(folder, path)) for label, path in zip(labels, paths, strict=True))
    parameters = _resolved(form, common, [model.parameters for model in inputs], sources[0])
    chosen = data.get("out_dtype") or data.get("dtype")
    return Recipe(
        ours,
        sources if base is None else sources[1:],
        parameters,
        None if base is None else sources[0],
        Policy(dtype=None if chosen is None else str(chosen)),
    )


def named(method: str, *, with_base: bool) -> str:
    """Our name of mergekit's method, which may be two of ours, without and with a base. Raises MergeError."""
    names = [name for name, entry in METHODS.items() if method in entry.mergekit]
    if not names:
        known = {word for entry in METHODS.values() for word in entry.mergekit}
        raise MergeError(f"unknown method {shortened(method)}{nearest(method, known)}")
    return next((name for name in names if METHODS[name].takes_base == with_base), names[0])


# -- models ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Model:
    path: str
    parameters: Mapping[str, Any]

    @staticmethod
    def read(data: Any) -> _Model:
        if not isinstance(data, Mapping) or "model" not in data:
            raise MergeError(f"an entry of models must have the key 'model', not be {shortened(data)}")
        for key in data:
            if key not in ("model", "parameters"):
                raise MergeError(
                    f"an entry of models has no key {shortened(key)}{nearest(str(key), ('model', 'parameters'))}"
                )
        return _Model(_path(data["model"]), _parameters(data.get("parameters"), str(data["model"])))


def _path(model: Any) -> str:
    if not isinstance(model, str):
        raise MergeError(f"model {shortened(model)}: only paths are supported, not adapters or revisions")
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


def _parameters(value: Any, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise MergeError(f"{where}: parameters must be a mapping, not {shortened(value)}")
    return value


def _check_keys(method: str, form: Mergekit, given: Sequence[Mapping[str, Any]]) -> None:
    relative = (form.relative[0],) if form.relative else ()
    known = (*form.each, *form.whole, *relative, *_WITHOUT_EFFECT)
    for parameters in given:
        for key in parameters:
            if key not in known:
                raise MergeError(f"{method} has no parameter {shortened(key)}{nearest(str(key), known)}")


def _inputs(method: str, ours: str, models: list[_Model], base: Any) -> tuple[_Model | None, list[_Model]]:
    """The base, if the method has one, and the models to merge, which the base is not one of."""
    takes_base, form = METHODS[ours].takes_base, METHODS[ours].mergekit[method]
    if form.alone and len(models) != 1:
        raise MergeError(f"{method} takes one model, {len(models)} were given")
    if base is None and (takes_base or form.base_first):
        raise MergeError(f"{method} needs a base_model")
    path = None if base is None else _path(base)
    if path is None or not (takes_base or form.base_first):
        return None, models
    others = [model for model in models if model.path != path]
    same = next((model for model in models if model.path == path), _Model(path, {}))
    return (None, [same, *others]) if form.base_first else (same, others)


def _labels(paths: Sequence[str]) -> list[str]:
    """A name for each input: the end of its path, numbered where it appears again."""
    stems = [Path(path).stem if Path(path).suffix and not is_hub(Path(path)) else Path(path).name for path in paths]
    seen: Counter[str] = Counter()
    labels: list[str] = []
    for stem in stems:
        seen[stem] += 1
        labels.append(stem if seen[stem] == 1 else f"{stem}-{seen[stem]}")
    return labels


# -- parameters ------------------------------------------------------------------------------------------------------


def _resolved(
    form: Mergekit, common: Mapping[str, Any], models: Sequence[Mapping[str, Any]], first: Input
) -> dict[str, Any]:
    """Our parameters; one that depends on the tensor has a rule for each name that is not as most are."""
    if not any(isinstance(value, (list, dict)) for level in (common, *models) for value in level.values()):
        return _values(form, common, models, "", 0.0)
    entries = open_checkpoint(first.path, first.section).entries
    names = [name for name, entry in entries.items() if entry.dtype.is_floating_point]
    rows = {name: _values(form, common, models, name, place) for name, place in _places(names).items()}
    parameters: dict[str, Any] = {}
    for key in next(iter(rows.values()), {}):
        usual = max(Counter(json.dumps(row[key]) for row in rows.values()).items(), key=lambda item: item[1])[0]
        rules = {_literal(name): row[key] for name, row in rows.items() if json.dumps(row[key]) != usual}
        parameters[key] = {**rules, "*": json.loads(usual)} if rules else json.loads(usual)
    return parameters


def _literal(name: str) -> str:
    """A glob that fits this name alone."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _places(names: Sequence[str]) -> dict[str, float]:
    """Where a tensor's layer lies in its stack, from 0 to 1; 0 for tensors outside numbered layers."""
    found = {name: re.match(r"(.*?(?:^|\.))(\d+)\.", name) for name in names}
    last: dict[str, int] = {}
    for match in filter(None, found.values()):
        last[match[1]] = max(last.get(match[1], 0), int(match[2]))
    return {name: int(match[2]) / max(last[match[1]], 1) if match else 0.0 for name, match in found.items()}


def _values(
    form: Mergekit, common: Mapping[str, Any], models: Sequence[Mapping[str, Any]], name: str, place: float
) -> dict[str, Any]:
    """Our parameters of one tensor."""
    values: dict[str, Any] = dict(form.fixed)
    for key, (ours, default) in form.whole.items():
        values[ours] = _value(key, default, [common], name, place)
    for key, (ours, default) in form.each.items():
        values[ours] = [_value(key, default, [model, common], name, place) for model in models]
    if form.relative and _value(*form.relative, [common], name, place):
        total = math.fsum(values["weights"])
        if total == 0:
            raise MergeError(f"the weights sum to 0 and cannot be normalized{f' for {name}' if name else ''}")
        values["weights"] = [weight / total for weight in values["weights"]]
    return values


def _value(key: str, default: Any, levels: Sequence[Mapping[str, Any]], name: str, place: float) -> Any:
    """The value of a parameter at the first level that has one for this tensor."""
    for level in levels:
        value = _filtered(key, level[key], name) if key in level else None
        if value is not None:
            return _number(key, value, place)
    if default is None:
        raise MergeError(f"the parameter {key!r} is missing{f' for {name}' if name else ''}")
    return default


def _filtered(key: str, value: Any, name: str) -> Any:
    """The value of the first entry whose filter is part of the tensor's name; a plain value is for all."""
    entries: Any = [value] if isinstance(value, Mapping) else value
    if not isinstance(entries, list) or not any(isinstance(entry, Mapping) for entry in entries):
        return value
    for entry in entries:
        if not isinstance(entry, Mapping) or not {"value"} <= set(entry) <= {"value", "filter"}:
            raise MergeError(f"{key}: an entry must have a 'value' and may have a 'filter', not be {shortened(entry)}")
        wanted = entry.get("filter")
        if wanted is None or wanted == "*" or str(wanted) in name:
            return entry["value"]
    return None


def _number(key: str, value: Any, place: float) -> Any:
    """A number, a switch, or a list of numbers along the layers, between which is interpolated."""
    if not isinstance(value, list):
        return _plain(key, value)
    numbers = [_plain(key, item) for item in value]
    if not numbers:
        raise MergeError(f"{key} must be a number or a list of numbers along the layers, not {shortened(value)}")
    at = place * (len(numbers) - 1)
    low = min(int(at), len(numbers) - 1)
    high = min(low + 1, len(numbers) - 1)
    return numbers[low] + (at - low) * (numbers[high] - numbers[low])


def _plain(key: str, value: Any) -> Any:
    """A number or a switch. YAML 1.1 reads 5e-1 as text, as it wants a point and a sign; mergekit makes it a number."""
    with contextlib.suppress(ValueError):
        value = float(value) if isinstance(value, str) else value
    if isinstance(value, (bool, int, float)) and abs(value) <= _LARGEST:
        return value
    raise MergeError(f"{key} must be a number or a list of numbers along the layers, not {shortened(value)}")
