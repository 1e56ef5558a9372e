"""Which units of any model move together: read from a file, or derived where names and shapes leave no doubt."""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from fnmatch import translate
from pathlib import Path
from typing import Any

from torch import Tensor

from merge.checkpoint.formats.format import path_of
from merge.checkpoint.open import specs
from merge.errors import MergeError
from merge.tools.align.spec import FREE, PermutationSpec, permutation_spec

EXAMPLE = '{"hidden": {"fc1.weight": 0, "fc1.bias": 0, "fc2.weight": 1}}'
Shapes = Mapping[str, tuple[int, ...]]


def read_groups(path: str | Path, tensors: Mapping[str, Tensor]) -> PermutationSpec:
    """Read the groups of a JSON file: by group, the axis of every tensor whose units move together.

        {"hidden": {"fc1.weight": 0, "fc1.bias": 0, "fc2.weight": 1}}

    Names may be globs, and an axis a list of axes. `{}` stands for a number, in the group as in its names, and makes a
    group for each: {"mlp{}": {"layers.{}.fc1.*": 0, "layers.{}.fc2.weight": 1}}. Axes that no group names stay as they
    are. Attention heads, whose channels move within each head, need `permutation_spec`.

    Raises MergeError for what the tensors do not have, sizes that contradict each other, an axis of two groups, and
    where a bias or norm of a layer whose outputs move would stay behind.
    """
    path = path_of(path, "groups")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise MergeError(f"{path}: not a JSON file of groups: {error}") from error
    if not isinstance(data, dict) or not all(isinstance(axes, dict) and axes for axes in data.values()):
        raise MergeError(f"{path}: must hold groups and the axes of their tensors, such as {EXAMPLE}")
    shapes = {name: tuple(spec.shape) for name, spec in specs(tensors).items()}
    found: dict[str, dict[int, str]] = {}
    for group, axes in data.items():
        for glob, given in axes.items():
            for name, owner in _matching(group, glob, shapes).items():
                for axis in given if isinstance(given, list) else [given]:
                    _claim(found.setdefault(name, {}), owner, name, axis, shapes[name])
    _check_siblings(found, shapes)
    return permutation_spec(_patterns(found, shapes), tensors)


def derive_groups(tensors: Mapping[str, Tensor]) -> PermutationSpec:
    """Derive the groups of a plain chain of linear or convolutional layers with norms between them.

    Every width between two layers must appear once, so that shapes alone tell the order of the layers, and no residual
    connection can join two widths. Raises MergeError where anything is in doubt, with an example of a file of groups.
    """
    shapes = {name: tuple(spec.shape) for name, spec in specs(tensors).items()}
    layers = {name: shape for name, shape in shapes.items() if len(shape) > 1}
    taking: dict[int, str] = {}
    giving: dict[int, str] = {}
    for name, (outputs, inputs, *_) in layers.items():
        for table, size, verb in ((taking, inputs, "take"), (giving, outputs, "give")):
            if table.setdefault(size, name) != name:
                raise _doubt(f"{table[size]} and {name} both {verb} {size} units")
    starts = [shape[1] for shape in layers.values() if shape[1] not in giving]
    if len(starts) != 1:
        raise _doubt(f"{len(starts)} of {len(layers)} layers take units that no other gives")
    width, hidden = starts[0], dict[int, str]()
    for _ in layers:
        layer = taking.get(width)
        if layer is None:
            raise _doubt(f"no layer takes the {width} units of {giving[width]}")
        width = layers[layer][0]
        hidden[width] = layer.removesuffix(".weight")
    del hidden[width]  # the outputs
    found: dict[str, dict[int, str]] = {}
    for name, shape in shapes.items():
        if len(shape) == 1 and shape[0] not in (*giving, starts[0]):
            raise _doubt(f"{name} has {shape[0]} values, and no layer gives or takes so many units")
        for axis, size in enumerate(shape[:2]):
            if size in hidden:
                found.setdefault(name, {})[axis] = hidden[size]
    if not found:
        raise _doubt("there is no width between two layers")
    return permutation_spec(_patterns(found, shapes), tensors)


def _doubt(reason: str) -> MergeError:
    return MergeError(
        f"names and shapes do not tell which units move together ({reason}): give groups=..., a JSON file such as "
        f"{EXAMPLE}"
    )


def _matching(group: str, glob: str, shapes: Shapes) -> dict[str, str]:
    """The tensors that a glob names, each with its group; `{}` is a number. Raises MergeError where there is none."""
    if not re.fullmatch(r"[^\s()]+", group) or group == FREE:
        raise MergeError(f"group {group!r}: a name is one word without brackets, and not {FREE!r}")
    pattern = re.compile(translate(glob).replace(r"\{\}", r"(\d+)"))
    found = {name: match for name in shapes if (match := pattern.match(name))}
    if not found:
        raise MergeError(f"group {group!r}: no tensor is called {glob!r}; there are {', '.join(list(shapes)[:5])}")
    return {name: group.replace("{}", match[1]) if match.re.groups else group for name, match in found.items()}


def _claim(axes: dict[int, str], group: str, name: str, axis: Any, shape: tuple[int, ...]) -> None:
    if type(axis) is not int or not -len(shape) <= axis < len(shape):
        raise MergeError(f"group {group!r}: {name} has shape {list(shape)} and no axis {axis!r}")
    if axes.setdefault(axis % len(shape), group) != group:
        raise MergeError(f"{name}: its axis {axis} lies in {axes[axis % len(shape)]!r} and in {group!r}")


def _check_siblings(found: Mapping[str, Mapping[int, str]], shapes: Shapes) -> None:
    """Biases and statistics move with the first axis of their module's weight."""
    for name, axes in found.items():
        module = name.rpartition(".")[0]
        for other, shape in shapes.items() if 0 in axes and name.endswith("weight") else ():
            if other.rpartition(".")[0] == module and shape == shapes[name][:1] and 0 not in found.get(other, {}):
                raise MergeError(f"group {axes[0]!r} has {name} and lacks {other}, which moves with it")


def _patterns(found: Mapping[str, Mapping[int, str]], shapes: Shapes) -> dict[str, str]:
    return {name: " ".join(axes.get(axis, FREE) for axis in range(len(shapes[name]))) for name, axes in found.items()}
