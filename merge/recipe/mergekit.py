"""mergekit's YAML recipes, read as ours.

Supported are `models`, `slices` and `modules`, `base_model`, `merge_method`, `dtype`, `out_dtype`, `chat_template`,
`tokenizer` (`merge.recipe.mergekit_tokenizer`) and the parameters of every method that is also ours, as numbers, as
lists by tensor name (`filter`) and as gradients over the layers (`merge.recipe.mergekit_values`); and several documents
in a file, as mergekit-multi takes them (`merge.recipe.mergekit_documents`). Anything else is an error. Numbers are not
always mergekit's to the last bit: arithmetic is in float32 and rounded once, so that `dtype` is the dtype of the result
and not of the sums.
"""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from merge.checkpoint.hub import is_hub, joined
from merge.errors import MergeError, nearest, shortened
from merge.methods import METHODS
from merge.plan.layers import lists_in
from merge.plan.policy import Policy
from merge.recipe.inputs import Opening, plainly
from merge.recipe.mergekit_documents import result_of
from merge.recipe.mergekit_forms import Stretch, check_keys, model_path, parameters_in, stretches_of
from merge.recipe.mergekit_tokenizer import tokenizer_choices
from merge.recipe.mergekit_values import Values, resolved
from merge.recipe.recipe import Input, Recipe
from merge.recipe.templates import template_of

_KEYS = (
    *("merge_method", "models", "slices", "modules", "base_model", "parameters", "dtype", "out_dtype"),
    *("tokenizer", "tokenizer_source", "chat_template", "name", "out_path"),
)
# What mergekit has and we do not yet.
_NOT_YET = {
    "input_model_parameters": "an old form: give every model its parameters under `models`",
}
_SAME = {"multi_modal_projector": "projector"}  # modules of mergekit, by the word in names of tensors
_LONGEST = 1 << 18  # bytes of a recipe in YAML, which is read by Python code, slowly
_MERGED = 10_000  # entries that merge keys may bring


def read_mergekit(path: Path, *, whole_depth: bool = False, opening: Opening = plainly) -> Recipe:
    """Read a YAML recipe of mergekit. Relative paths of models are relative to the recipe's folder.

    `opening` opens inputs where parameters differ by layer or module.

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
        documents = list(yaml.load_all(path.read_text(encoding="utf-8"), Loader))
        documents = [item for item in documents if item is not None]  # nothing follows a last line of dashes
    except (OSError, ValueError, TypeError, OverflowError, yaml.YAMLError, RecursionError) as error:
        if isinstance(error, MergeError):
            raise
        raise MergeError(f"{path}: not a YAML file: {shortened(error)}") from error
    try:
        rest: dict[str, Any] = {"whole_depth": whole_depth, "opening": opening}
        if len(documents) < 2:
            return from_mergekit(documents[0] if documents else None, path.parent, **rest)
        return result_of(path, documents, lambda data, made: from_mergekit(data, path.parent, made=made, **rest))
    except MergeError as error:
        raise MergeError(f"{path}: {error}") from error


def from_mergekit(
    data: Any,
    folder: Path = Path(),
    *,
    whole_depth: bool = False,
    opening: Opening = plainly,
    made: Mapping[str, Input] | None = None,
) -> Recipe:
    """A recipe of mergekit, as plain data, as one of ours; headers are read where parameters differ by tensor.

        >>> models = [{"model": name, "parameters": {"weight": 0.5}} for name in ("a.pt", "b.pt")]
        >>> from_mergekit({"merge_method": "linear", "models": models}).parameters["weights"]
        [0.5, 0.5]

    With `whole_depth` gradients run over all layers of the result, and what lies behind them has the last value; in
    mergekit they begin anew in every slice, and what lies before and behind has the first. `opening` opens inputs;
    models that are called as one of `made` are that. Raises MergeError.
    """
    if not isinstance(data, Mapping) or "merge_method" not in data:
        raise MergeError("not a recipe of mergekit: it has no 'merge_method'")
    for key in data:
        if key in _NOT_YET and data[key] is not None:
            raise MergeError(f"{key}: {_NOT_YET[key]}")
        if key not in (*_KEYS, *_NOT_YET):
            raise MergeError(f"a recipe has no key {shortened(key)}{nearest(str(key), _KEYS)}")
    method = str(data["merge_method"])
    base = None if data.get("base_model") is None else model_path(data["base_model"])
    ours = named(method, with_base=base is not None)
    form, entry = METHODS[ours].mergekit[method], METHODS[ours]
    lists, common = stretches_of(data), parameters_in(data.get("parameters"), "parameters")
    every = [stretch for its in lists.values() for stretch in its]
    check_keys(method, form, [common, *(given for stretch in every for given in stretch.given)])
    if base is None and (entry.takes_base or form.base_first):
        raise MergeError(f"{method} needs a base_model")
    if form.alone and (many := [len(stretch.sources) for stretch in every if len(stretch.sources) != 1]):
        raise MergeError(f"{method} takes one model, {many[0]} were given")
    used = list(dict.fromkeys(source.path for stretch in every for source in stretch.sources))
    paths = [base] if base is not None and (entry.takes_base or form.base_first or base in used) else []
    paths += [path for path in used if path not in paths]
    called = dict(zip(paths, _labels(paths), strict=True))
    others: Mapping[str, Input] = made or {}
    sources = tuple(
        replace(others[path], name=label) if path in others else Input(label, joined(folder, path))
        for path, label in called.items()
    )
    takes = int(entry.takes_base)
    rows = tokenizer_choices(data, folder, called, base)
    policy = Policy(dtype=_dtype(data), untie=True, chat_template=_template(data, sources, opening), **rows)
    layers = _layers(lists, called, sources, base, opening)
    recipe = Recipe(ours, sources[takes:], {}, sources[0] if takes else None, policy, layers)
    values = Values(form, common, lists, called, whole_depth)
    return recipe.with_parameters(**resolved(recipe, values, opening))


def _dtype(data: Mapping[str, Any]) -> str | None:
    chosen = data.get("out_dtype") or data.get("dtype")
    return None if chosen is None else str(chosen)


def _template(data: Mapping[str, Any], sources: Sequence[Input], opening: Opening) -> str:
    given = data.get("chat_template")
    if given is None:
        return ""
    return template_of(given, [item.path if item.recipe is None else opening(item).path for item in sources])


def _layers(
    lists: Mapping[str, Sequence[Stretch]],
    called: Mapping[str, str],
    sources: Sequence[Input],
    base: str | None,
    opening: Opening,
) -> dict[str, tuple[dict[str, Any], ...]]:
    """The layers of our recipe: nothing where every model is taken as a whole."""
    if all(source.span is None for its in lists.values() for stretch in its for source in stretch.sources):
        return {}
    names = _lists_of(sources[0], list(lists), opening) if list(lists) != [""] else {"": ""}
    return {
        names[name]: tuple(
            {
                called[source.path]: source.span
                for source in sorted(stretch.sources, key=lambda source: source.path != base)
            }
            for stretch in its
        )
        for name, its in lists.items()
    }


def _lists_of(first: Input, modules: Sequence[str], opening: Opening) -> dict[str, str]:
    """The list of layers that every module's name means, by the words in both. Raises MergeError."""
    lists = list(lists_in(opening(first)))
    found: dict[str, str] = {}
    for module in modules:
        words = {"text": "language", **_SAME}.get(module, module).replace("text", "language|text").split("_")
        near = [name for name in lists if any(re.search(word, name) for word in words)]
        near = lists if module == "default" or len(lists) == 1 else near
        if len(near) != 1:
            raise MergeError(
                f"modules: {module} is no single list of layers of {first.name}: it has {', '.join(lists)}"
            )
        found[module] = near[0]
    return found


def named(method: str, *, with_base: bool) -> str:
    """Our name of mergekit's method, which may be two of ours, without and with a base. Raises MergeError."""
    names = [name for name, entry in METHODS.items() if method in entry.mergekit]
    if not names:
        known = {word for entry in METHODS.values() for word in entry.mergekit}
        raise MergeError(f"unknown method {shortened(method)}{nearest(method, known)}")
    return next((name for name in names if METHODS[name].takes_base == with_base), names[0])


def _labels(paths: Sequence[str]) -> list[str]:
    """A name for each input: the end of its path, numbered where it appears again."""
    stems = [Path(path).stem if Path(path).suffix and not is_hub(Path(path)) else Path(path).name for path in paths]
    seen: Counter[str] = Counter()
    labels: list[str] = []
    for stem in stems:
        seen[stem] += 1
        labels.append(stem if seen[stem] == 1 else f"{stem}-{seen[stem]}")
    return labels
