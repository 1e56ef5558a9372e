"""A recipe: everything needed to make a merged checkpoint again, as plain data and as JSON."""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from merge.errors import MergeError
from merge.methods import METHODS, Method, Parameter
from merge.plan.policy import Policy, is_rules, resolve
from merge.plan.units import Unit

FORMAT = "unival-merge recipe 1"
SHARES = ("ratio", "scale", "weights")  # parameters that say how much of each checkpoint there is
_LARGEST = 3.4e38  # arithmetic is in float32


@dataclass(frozen=True)
class Input:
    """One checkpoint of a recipe. `digest` is what its tensors' bytes had when the recipe was run; empty if never."""

    name: str
    path: Path
    section: str = "auto"
    digest: str = ""


@dataclass(frozen=True)
class Recipe:
    """Method, inputs, coefficients and policies.

    Attributes:
        method: a key of `METHODS`.
        inputs: checkpoints to merge; names are unique and are the words used for shares.
        parameters: the method's parameters. A number, or for a parameter per input a list or a mapping by name; each
            may also be a mapping from globs to such values ("*" required, the first match wins).
        base: the common ancestor, for methods that take one.
        policy: names, dtypes, BatchNorm statistics, non-finite values.
    """

    method: str
    inputs: tuple[Input, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    base: Input | None = None
    policy: Policy = field(default_factory=Policy)

    @property
    def sources(self) -> tuple[Input, ...]:
        """All checkpoints read, the base first."""
        return self.inputs if self.base is None else (self.base, *self.inputs)

    def with_parameters(self, **parameters: Any) -> Recipe:
        """The same recipe at other coefficients."""
        return replace(self, parameters={**self.parameters, **parameters})


# -- parameters ------------------------------------------------------------------------------------------------------


def parameters_for(recipe: Recipe, units: Sequence[Unit]) -> dict[str, dict[str, Any]]:
    """Every unit's parameters by its first name, checked: ranges, counts, finite sums, rules by module resolved.

    Raises MergeError for an unknown parameter (with the nearest known one), for a value out of its range and for rules
    that part names which are one tensor.
    """
    method = method_named(recipe.method)
    check_inputs(recipe, method)
    for name in recipe.parameters:
        if name not in method.parameters:
            raise MergeError(f"{recipe.method} has no parameter {name!r}{nearest(name, method.parameters)}")
    groups = [unit.names for unit in units if unit.kind != "copy"]
    names = [name for group in groups for name in group]
    common: dict[str, Any] = {}
    resolved: dict[str, dict[str, Any]] = {}
    for key, parameter in method.parameters.items():
        value = _value(recipe, key, parameter)
        if is_rules(value):
            checked = {str(glob): _checked(recipe, key, parameter, item) for glob, item in value.items()}
            resolved[key] = {name: item for name, (_, item) in resolve(checked, names).items()} if names else {}
        else:
            common[key] = _checked(recipe, key, parameter, value)
    subsets = {unit.name: unit.sources for unit in units if unit.kind != "copy"} if _has_union(recipe) else {}
    if not resolved and not subsets:
        return {group[0]: common for group in groups}
    for first, *others in groups:
        for key, values in resolved.items():
            for other in others:
                if values[other] != values[first]:
                    told = f"{values[first]} and {values[other]}"
                    raise MergeError(f"{first} and {other} are one tensor, but the rules for {key} give {told}")
    found = {group[0]: common | {key: values[group[0]] for key, values in resolved.items()} for group in groups}
    for name, sources in subsets.items():
        if len(sources) < len(recipe.inputs):
            found[name] = {key: _among(sources, value, method.parameters[key]) for key, value in found[name].items()}
    return found


def _has_union(recipe: Recipe) -> bool:
    return recipe.policy.missing == "union"


def _among(sources: Sequence[int], value: Any, parameter: Parameter) -> Any:
    """A parameter for some of the inputs: shares are scaled to the sum 1, equal where all were 0."""
    if not parameter.each:
        return value
    mine = tuple(value[index] for index in sources)
    if not (parameter.simplex or parameter.relative):
        return mine
    total = math.fsum(mine)
    return tuple(number / total for number in mine) if total else (1 / len(mine),) * len(mine)


def _value(recipe: Recipe, key: str, parameter: Parameter) -> Any:
    """The parameter as the recipe or the method's default gives it: a value for all tensors, or rules by name."""
    value = recipe.parameters.get(key, 1 / len(recipe.inputs) if parameter.simplex else parameter.default)
    if isinstance(value, Mapping) and not parameter.each and not is_rules(value):
        resolve(value, ())  # says that "*" is missing
    if value is None:
        raise MergeError(f"{recipe.method} needs the parameter {key!r}: {parameter.help}")
    return value


def _checked(recipe: Recipe, key: str, parameter: Parameter, value: Any) -> Any:
    if not parameter.each:
        return _number(recipe, key, parameter, value)
    named = [item.name for item in recipe.inputs]
    if isinstance(value, Mapping):
        if set(value) != set(named):
            raise MergeError(f"{key} names {', '.join(map(str, value))}; the inputs are {', '.join(named)}")
        value = [value[name] for name in named]
    if isinstance(value, (int, float)):
        value = [value] * len(named)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise MergeError(f"{key} must be a list of numbers or a mapping by name, not {value!r}")
    if len(value) != len(named):
        raise MergeError(f"{len(value)} {key} were given for {len(named)} inputs ({', '.join(named)})")
    numbers = tuple(_number(recipe, key, parameter, item) for item in value)
    total = math.fsum(numbers)
    if parameter.simplex and not math.isclose(total, 1, abs_tol=1e-6) and not (recipe.policy.extrapolate and total):
        advice = "pass --extrapolate to mean it" if total else "which erases every tensor"
        raise MergeError(f"{key} {', '.join(f'{x:g}' for x in numbers)} sum to {total:g}, not to 1: {advice}")
    if parameter.simplex and not recipe.policy.extrapolate:
        return tuple(number / total for number in numbers)  # 0.333 three times means a third
    return numbers


def _number(recipe: Recipe, key: str, parameter: Parameter, value: Any) -> Any:
    if parameter.kind is bool and isinstance(value, bool):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or abs(value) == math.inf:
        raise MergeError(f"{key} must be a finite number, not {repr(value)[:40]}")
    if abs(value) > _LARGEST:
        raise MergeError(f"{key} must be a finite number, below {_LARGEST:g}, which is what float32 holds")
    share = key == "ratio" or parameter.simplex
    if not parameter.low <= value <= parameter.high and not (recipe.policy.extrapolate and share):
        beyond = "; pass --extrapolate to go beyond" if share else ""
        raise MergeError(f"{key} {value} is outside [{parameter.low:g}, {parameter.high:g}]{beyond}")
    if parameter.kind is int and value != int(value):
        raise MergeError(f"{key} must be a whole number, not {value}")
    return parameter.kind(value)


def method_named(name: str) -> Method:
    """The method, or a MergeError with the nearest known name."""
    if name not in METHODS:
        raise MergeError(f"unknown method {name!r}{nearest(name, METHODS)}")
    return METHODS[name]


def check_inputs(recipe: Recipe, method: Method) -> None:
    """Raise MergeError where the number of inputs, their names or the base do not fit the method."""
    names = [item.name for item in recipe.sources]
    for name in names:
        if names.count(name) > 1:
            raise MergeError(f"two inputs are called {name!r}; tell them apart with --name")
        if not name or name == "*" or "/" in name or "\\" in name:
            raise MergeError(f"an input is called {name!r}; choose a --name without slashes that is not '*'")
    low, high = method.inputs
    count = len(recipe.inputs)
    if count < low or (high is not None and count > high):
        wanted = f"{low}" if low == high else f"at least {low}"
        raise MergeError(f"{recipe.method} takes {wanted} checkpoints, {count} were given")
    if method.takes_base != (recipe.base is not None):
        raise MergeError(f"{recipe.method} {'needs' if method.takes_base else 'takes no'} base")


def shares(recipe: Recipe) -> dict[str, float] | None:
    """The coefficient of every checkpoint by name where one set holds for all tensors.

    None for rules by module and for methods that have no coefficient for each checkpoint (statistics or angles decide
    there). Raises MergeError for parameters that the method does not accept.
    """
    known = method_named(recipe.method).parameters
    given = {key: recipe.parameters[key] for key in recipe.parameters if key in known}
    if not set(SHARES) & set(known) or any(is_rules(value) for value in given.values()):
        return None
    names = [item.name for item in recipe.inputs]
    used = [key for key in (*SHARES, "normalize") if key in known]
    values = {key: _checked(recipe, key, known[key], _value(recipe, key, known[key])) for key in used}
    if "ratio" in values:
        return {names[0]: 1 - values["ratio"], names[1]: values["ratio"]}
    weights = values.get("weights", (1.0,) * len(names))
    total = math.fsum(weights)
    if "weights" in known and known["weights"].relative and values.get("normalize", True) and total:
        weights = [weight / total for weight in weights]
    return {name: values.get("scale", 1.0) * weight for name, weight in zip(names, weights, strict=True)}


def share_label(parts: Mapping[str, float]) -> str:
    """The one way in which shares are printed: "0.20 vqa + 0.80 caption"; more digits only where they are needed."""
    return " + ".join(f"{_digits(value)} {name}" for name, value in parts.items())


def _digits(value: float) -> str:
    return f"{value:.2f}" if math.isclose(value, round(value, 2), abs_tol=1e-9) else f"{value:.6f}".rstrip("0")


def describe(recipe: Recipe) -> str:
    """A recipe in words: shares where the method has them, else names, and what other parameters it gives."""
    parts = shares(recipe)
    base = [] if recipe.base is None else [recipe.base.name]
    names = [item.name for item in recipe.inputs]
    if parts:
        text = " + ".join([*base, share_label(parts)])
    elif method_named(recipe.method).statistics:
        half = len(names) // 2
        text = f"{', '.join(names[:half])} by statistics {', '.join(names[half:])}"
    else:
        text = ", ".join([*base, *names])
    rest = [f"{k} {_plain(v)}" for k, v in recipe.parameters.items() if not parts or k not in SHARES]
    rules = [rule.rpartition("=") for rule in (*recipe.policy.pick, *recipe.policy.slices)]
    picked = "".join(f", {what} from {name or 'none'}" for what, _, name in rules)
    return f"{recipe.method}: {text}" + (f" ({', '.join(rest)})" if rest else "") + picked


def _plain(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value)


# -- JSON ------------------------------------------------------------------------------------------------------------

_KEYS = {"format", "method", "inputs", "base", "parameters", "policy", "output", "provenance"}


def to_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain JSON data."""
    policy = recipe.policy
    return {
        "format": FORMAT,
        "method": recipe.method,
        "base": None if recipe.base is None else _input_json(recipe.base),
        "inputs": [_input_json(item) for item in recipe.inputs],
        "parameters": {
            key: list(value) if isinstance(value, tuple) else value for key, value in recipe.parameters.items()
        },
        "policy": {
            "keep": list(policy.keep),
            "drop": list(policy.drop),
            "missing": policy.missing,
            "dtype": None if policy.dtype is None else dtype_name(policy.dtype),
            "compute_dtype": dtype_name(policy.compute_dtype),
            "batchnorm": policy.batchnorm,
            "allow_nonfinite": policy.allow_nonfinite,
            "extrapolate": policy.extrapolate,
            **_where_used(policy),
        },
    }


def _where_used(policy: Policy) -> dict[str, Any]:
    """Choices that few merges make: they are noted where they are made."""
    found = {"pick": list(policy.pick), "slices": list(policy.slices), "vocab_rows": policy.vocab_rows}
    return {key: value for key, value in found.items() if value not in ([], "error")}


def _input_json(item: Input) -> dict[str, str]:
    return {"name": item.name, "path": str(item.path), "section": item.section, "digest": item.digest}


def from_json(data: Any, folder: Path = Path()) -> Recipe:
    """A recipe from JSON data; relative paths are relative to `folder`.

    Raises MergeError for unknown keys (with the nearest known one), missing ones and values of the wrong kind.
    """
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise MergeError(f"not a recipe: its 'format' must be {FORMAT!r}")
    _known(data, _KEYS, "a recipe")
    try:
        base = data.get("base")
        return Recipe(
            method=str(data["method"]),
            inputs=tuple(_input(item, folder) for item in data["inputs"]),
            parameters=dict(data.get("parameters", {})),
            base=None if base is None else _input(base, folder),
            policy=_policy(data.get("policy", {})),
        )
    except KeyError as error:
        raise MergeError(f"the recipe lacks {error}") from error
    except (TypeError, AttributeError) as error:
        raise MergeError(f"the recipe has a value of the wrong kind: {error}") from error


def read_recipe(path: Path) -> Recipe:
    """A recipe file, as written beside every merged checkpoint, or mergekit's YAML (`.yml`, `.yaml`)."""
    if path.suffix in (".yml", ".yaml"):
        from merge.recipe.mergekit import read_mergekit  # which builds on this module

        return read_mergekit(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise MergeError(f"{path}: not a recipe file: {error}") from error
    try:
        return from_json(data, path.parent)
    except MergeError as error:
        raise MergeError(f"{path}: {error}") from error


def _input(data: Mapping[str, Any], folder: Path) -> Input:
    _known(data, {"name", "path", "section", "digest"}, "an input")
    path = Path(_kind("path", data["path"], str))
    texts = {key: _kind(key, data[key], str) for key in ("name", "section", "digest") if key in data}
    return Input(texts.get("name") or path.stem, folder / path, texts.get("section", "auto"), texts.get("digest", ""))


def _policy(data: Mapping[str, Any]) -> Policy:
    defaults = Policy()
    _known(data, set(vars(defaults)), "a policy")
    values = dict(data)
    for key, value in data.items():
        if key in ("keep", "drop", "pick", "slices"):
            _kind(key, value, list)
            values[key] = tuple(_kind(key, item, str) for item in value)
        elif key in ("dtype", "compute_dtype"):
            values[key] = None if value is None else dtype_named(_kind(key, value, str))
        else:
            _kind(key, value, type(getattr(defaults, key)))
    return replace(defaults, **values)


def _kind(key: str, value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise MergeError(f"the recipe's {key} is {value!r}; it must be a {kind.__name__}")
    return value


def _known(data: Mapping[str, Any], known: Iterable[str], what: str) -> None:
    for key in data:
        if key not in set(known):
            raise MergeError(f"{what} has no key {key!r}{nearest(key, known)}")


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a sentence that names the nearest known word, or all of them."""
    choices = sorted(known)
    close = difflib.get_close_matches(word, choices, 1, 0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(choices)}"


_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}


def dtype_named(name: str) -> torch.dtype:
    """A floating dtype by its torch name. Raises MergeError with the nearest known one."""
    if name not in _DTYPES:
        raise MergeError(f"unknown dtype {name!r}{nearest(name, _DTYPES)}")
    return _DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype's torch name."""
    return str(dtype).removeprefix("torch.")
