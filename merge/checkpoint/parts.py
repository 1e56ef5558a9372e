"""Outputs that are folders: every part where it came from and in its layout, and the files beside the weights."""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import contextlib
import filecmp
import json
import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from merge.checkpoint.folder import INDEX, walk, weights_in, why_left_out
from merge.checkpoint.formats.format import WHOLE, Layout, OutputFile, Specs
from merge.checkpoint.hub import hub_id
from merge.checkpoint.open import Checkpoint
from merge.errors import MergeError

_LISTED = 8  # file names in a note


def with_parts(checkpoints: Sequence[Checkpoint]) -> Checkpoint:
    """Give the first checkpoint with the parts that only later ones have, so that an output has a place for them."""
    first = checkpoints[0]
    if not any(item.parts for item in checkpoints) or not first.path.is_dir() or first.format.index:
        return first
    parts = dict(first.parts) or {"": replace(first, path=weights_in(first.path) or first.path)}
    for item in checkpoints[1:]:
        parts = {**item.parts, **parts}
    return replace(first, parts=parts)


def lay_out_parts(tensors: Specs, parts: Mapping[str, Checkpoint]) -> Layout:
    """Lay every part out as it was: the same files, each with the tensors that it had, under an index where it had one.

    What a part has not had comes into its last file. Raises MergeError for content that a format cannot hold.
    """
    files: list[OutputFile] = []
    copied: dict[str, Path] = {}
    notes: list[str] = []
    mine: dict[str, dict[str, Any]] = {prefix: {} for prefix in parts}
    for name, spec in tensors.items():
        prefix = max((prefix for prefix in parts if name.startswith(prefix)), key=len, default="")
        if prefix not in parts:
            raise MergeError(f"{name} is of no part of the first input, which has {', '.join(parts)}")
        mine[prefix][name.removeprefix(prefix)] = spec
    for prefix, part in parts.items():
        layout = _part(part, mine[prefix])
        files += [_moved(file, prefix) for file in layout.files]
        copied |= {prefix + name: path for name, path in layout.copied.items()}
        notes += [f"{prefix or './'}: {note}" for note in layout.notes]
    return Layout(files, folder=True, notes=tuple(notes), copied=copied)


def _part(part: Checkpoint, tensors: Specs) -> Layout:
    """Lay out one part; its names are its own. Nothing is written where nothing of it is left."""
    metadata = dict(part.metadata) or None
    if part.format.index:
        return part.format.plan(part.path, tensors, part.content, metadata)
    where = {name: entry.file.path for name, entry in part.entries.items()}
    held: dict[Path, dict[str, Any]] = {file: {} for file in part.files}
    for name, spec in tensors.items():
        held[where[name] if where.get(name) in held else part.files[-1]][name] = spec
    files: list[OutputFile] = []
    notes: list[str] = []
    for file, specs in held.items():
        if specs:
            content = part.content if len(part.files) == 1 else replace(part.format.read(file), section=WHOLE)
            layout = part.format.plan(file, specs, content, metadata)
            files += [replace(item, name=file.name) for item in layout.files]
            notes += layout.notes
    if INDEX.fullmatch(part.path.name) and files:
        files.append(_index(part.path, files, tensors))
    return Layout(files, notes=tuple(notes))


def _index(path: Path, files: Sequence[OutputFile], tensors: Specs) -> OutputFile:
    """The index of a part's files, with what it noted before but for the sizes and for names that have a place now."""
    old = json.loads(path.read_text(encoding="utf-8"))
    places = {name: file.name for file in files for name in file.starts}
    noted = old.get("metadata")
    noted = {key: value for key, value in noted.items() if key not in places} if isinstance(noted, dict) else {}
    noted["total_size"] = sum(tensors[name].nbytes for name in places)
    if "total_parameters" in noted:
        noted["total_parameters"] = sum(math.prod(tensors[name].shape) for name in places)
    text = json.dumps({**old, "metadata": noted, "weight_map": places}, indent=2).encode()
    return OutputFile(path.name, len(text), [(0, text)])


def _moved(file: OutputFile, prefix: str) -> OutputFile:
    """The same file in a part's folder: the names of its tensors begin with the folder's."""
    closing = file.closing
    own: dict[Hashable, Hashable] = {prefix + name: name for name in file.starts}
    own |= {key: key for key in file.passed}

    def closed(crcs: Mapping[Hashable, int]) -> list[tuple[int, bytes]]:
        return closing({own[key]: crc for key, crc in crcs.items() if key in own}) if closing else []

    starts = {prefix + name: start for name, start in file.starts.items()}
    return replace(file, name=prefix + file.name, starts=starts, closing=closed if closing else None)


# -- the files beside the weights ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Beside:
    """The files of a folder that are no weights: those taken over by relative name, others by the reason why not."""

    taken: Mapping[str, Path]
    left: Mapping[str, Sequence[str]]


def beside(checkpoint: Checkpoint) -> Beside:
    """What lies beside the weights of a folder. A file has nothing beside it, nor has a folder that is a format."""
    taken: dict[str, Path] = {}
    left: dict[str, list[str]] = {}
    if not checkpoint.path.is_dir() or checkpoint.format.index:
        return Beside(taken, left)
    found = dict(walk(checkpoint.path, checkpoint.parts))
    for prefix, part in checkpoint.parts.items():
        if not part.path.is_relative_to(checkpoint.path):  # of another input
            found |= {prefix + path.name: path for path in part.path.parent.iterdir() if not path.is_dir()}
    used = {file for part in (checkpoint, *checkpoint.parts.values()) for file in part.files}
    for name, path in found.items():
        if path not in used and not INDEX.fullmatch(path.name):
            why = why_left_out(path)
            left.setdefault(why, []).append(name) if why else taken.setdefault(name, path)
    return Beside(taken, left)


def accounts(
    checkpoints: Sequence[Checkpoint], folder: bool, given: Collection[str] = ()
) -> tuple[dict[str, Path], list[str]]:
    """Give the files beside the first input's weights that a folder takes over, and notes on what lies beside all.

    `given` are files whose content comes from elsewhere.
    """
    first, *others = ((item, beside(item)) for item in checkpoints)
    notes: list[str] = []
    taken = {name: path for name, path in first[1].taken.items() if name not in given} if folder else {}
    if taken:
        notes.append(f"taken over from {_called(first[0])}: {_listed(taken)}")
    elif first[1].taken:
        notes.append(f"left out of {_called(first[0])}, since the output is one file: {_listed(first[1].taken)}")
    reasons = [f"{why} ({_listed(names)})" for why, names in first[1].left.items()]
    if reasons:
        notes.append(f"left out of {_called(first[0])}: {', '.join(reasons)}")
    for item, its in others if folder else ():
        only = [name for name in its.taken if name not in taken and name not in given]
        unlike = [name for name, path in its.taken.items() if name in taken and not _same(path, taken[name])]
        if only:
            notes.append(f"left out of {_called(item)}: {_listed(only)}")
        if unlike:
            notes.append(f"as in {_called(first[0])}, and other than in {_called(item)}: {_listed(unlike)}")
    return taken, notes


def _called(checkpoint: Checkpoint) -> str:
    return hub_id(checkpoint.path) or checkpoint.path.name


def _same(path: Path, other: Path) -> bool:
    with contextlib.suppress(OSError):
        return filecmp.cmp(path, other, shallow=False)
    return False


def _listed(names: Mapping[str, Path] | Sequence[str]) -> str:
    shown = ", ".join(list(names)[:_LISTED])
    return shown if len(names) <= _LISTED else f"{shown} and {len(names) - _LISTED} more"
