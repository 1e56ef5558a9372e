"""What a checkpoint holds, from its headers alone."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from merge.checkpoint.digest import digest, kind_of
from merge.checkpoint.formats.format import WHOLE, Specs
from merge.checkpoint.formats.tensors import Spec, TensorEntry
from merge.checkpoint.open import Checkpoint, find_checkpoint, specs
from merge.checkpoint.owned import recipe_path
from merge.checkpoint.source import Source, opened
from merge.errors import MergeError
from merge.plan.checks import COUNTERS
from merge.plan.findings.kinds import counted
from merge.recipe.json import read_recipe
from merge.recipe.shares import describe, made_of
from merge.tools.diagnose.tables import Shown, amount, module_of, part, size, table

TEXT = 60  # characters of a metadata value or a setting that are shown
WIDTH = 116  # characters of a line of settings


@dataclass(frozen=True)
class Group:
    """Tensors counted together: a section, a dtype, a module. Parameters are floating elements; ties count once."""

    name: str
    tensors: int
    parameters: int
    nbytes: int


@dataclass(frozen=True)
class Stored:
    """One tensor or one other entry of a file, and what it is."""

    name: str
    kind: str


@dataclass(frozen=True)
class Made:
    """The recipe beside a checkpoint.

    Attributes:
        path: the recipe's file.
        description: method and shares in words; what is wrong with the file where it cannot be read.
        inputs: the checkpoints that were merged, the base first.
        digest: of the output's tensors, as noted; empty where none was.
        fits: whether the file still has that digest; None where it was not asked or not noted.
    """

    path: str
    description: str
    inputs: tuple[str, ...] = ()
    digest: str = ""
    fits: bool | None = None


@dataclass(frozen=True, repr=False)
class Inspection(Shown):
    """What a checkpoint holds.

    Attributes:
        section: the part that is described; None where there are several and none was chosen: then only `files`,
            `sections`, `others` and `made` are filled.
        ties: groups of names that are one tensor.
        integers: tensors that are no numbers to average.
        settings: what a training file notes of the model and the run, by the way to it (`"cfg.model"`): its plain
            values by name.
        others: what a torch file holds besides tensors and sections, at its top level.
        made: the recipe lying beside the file.
    """

    path: str
    layout: str
    files: tuple[Group, ...]
    sections: tuple[Group, ...]
    section: str | None
    total: Group | None
    dtypes: tuple[Group, ...]
    modules: tuple[Group, ...]
    ties: tuple[tuple[str, ...], ...]
    integers: tuple[Stored, ...]
    metadata: Mapping[str, str]
    settings: Mapping[str, Mapping[str, Any]]
    others: tuple[Stored, ...]
    made: Made | None

    def __repr__(self) -> str:
        return f"<Inspection of {_lines(self)[0]}>"

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON data."""
        return asdict(self)

    def text(self) -> str:
        """As printed on a terminal."""
        return "\n".join(_lines(self))


def inspect(source: Source, section: str = "auto", *, check_digest: bool = False) -> Inspection:
    """Describe a checkpoint from its headers; of several sections none needs to be chosen.

    `check_digest` reads the tensors and compares them with the digest in the recipe beside the file.
    An open checkpoint stands for its file and section. Raises MergeError for what is no checkpoint, for a file that
    cannot be opened and for a section that it does not have.
    """
    if not isinstance(source, (str, Path, Checkpoint)):
        return _in_memory(source)
    if isinstance(source, Checkpoint):
        section = source.section if section == "auto" else section
        source = source.path
    path = Path(source)
    found = find_checkpoint(path)
    names, default = list(found.content.sections), found.content.default
    chosen = section != "auto" or bool(default) or len(names) == 1
    checkpoint = found.choose(section if chosen else names[0])
    entries: Mapping[str, TensorEntry] = checkpoint.entries if chosen else {}
    # Of a format with a default section the others are not looked at: their tensors may be absent.
    sections = {checkpoint.section: checkpoint.entries} if default or len(names) == 1 else found.content.sections
    return Inspection(
        path=str(path),
        layout=checkpoint.layout,
        files=_files(checkpoint),
        sections=tuple(_group(name, found) for name, found in sections.items()),
        section=checkpoint.section if chosen else None,
        total=_group(checkpoint.section, entries) if chosen else None,
        **_tensors(entries),
        metadata={key: _short(value) for key, value in checkpoint.metadata.items()},
        settings=_settings(checkpoint.noted),
        others=tuple(Stored(name, kind) for name, kind in found.content.others.items()),
        made=_made(path, checkpoint if chosen and check_digest else None),
    )


def _in_memory(source: Source) -> Inspection:
    """Describe a state dict or a module, which have no file, sections or metadata."""
    entries = specs(opened(source))
    whole = _group(WHOLE, entries)
    return Inspection(
        path=type(source).__name__,
        layout="in memory",
        files=(),
        sections=(whole,),
        section=WHOLE,
        total=whole,
        **_tensors(entries),
        metadata={},
        settings={},
        others=(),
        made=None,
    )


def _tensors(entries: Specs) -> dict[str, Any]:
    """The fields of an inspection that follow from the tensors."""
    return {
        "dtypes": _groups(entries, lambda name: entries[name].element.name),
        "modules": _groups(entries, module_of),
        "ties": _ties(entries),
        "integers": tuple(
            Stored(name, f"{entry.element} {list(entry.shape)}")
            for name, entry in entries.items()
            if not (entry.element.is_floating_point or entry.element.is_complex)
        ),
    }


def _files(checkpoint: Checkpoint) -> tuple[Group, ...]:
    if checkpoint.format.index:  # a file a tensor: shown as one
        inside = _group(checkpoint.path.name, checkpoint.entries)
        on_disk = sum(file.stat().st_size for file in checkpoint.path.rglob("*") if file.is_file())
        return (Group(inside.name, inside.tensors, inside.parameters, on_disk),)
    return tuple(_file(file, checkpoint) for file in checkpoint.files)


def _file(file: Path, checkpoint: Checkpoint) -> Group:
    inside = {name: entry for name, entry in checkpoint.entries.items() if entry.file.path == file}
    group = _group(file.name, inside)
    return Group(file.name, group.tensors, group.parameters, file.stat().st_size)


def _group(name: str, entries: Specs) -> Group:
    once: dict[Hashable, Spec | TensorEntry] = {
        key if entry.tie is None else entry.tie: entry for key, entry in entries.items()
    }
    parameters = sum(
        math.prod(entry.shape) for entry in once.values() if entry.element.is_floating_point or entry.element.is_complex
    )
    return Group(name, len(entries), parameters, sum(entry.nbytes for entry in once.values()))


def _groups(entries: Specs, key: Callable[[str], str]) -> tuple[Group, ...]:
    parts: dict[str, dict[str, Spec | TensorEntry]] = {}
    for name, entry in entries.items():
        parts.setdefault(key(name), {})[name] = entry
    return tuple(_group(name, part) for name, part in parts.items())


def _ties(entries: Specs) -> tuple[tuple[str, ...], ...]:
    groups: dict[Hashable, list[str]] = {}
    for name, entry in entries.items():
        if entry.tie is not None:
            groups.setdefault(entry.tie, []).append(name)
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)


def _settings(noted: Mapping[str, Any], way: str = "") -> dict[str, Mapping[str, Any]]:
    """Nested settings as flat ones, by the way to them; lists and values that are empty count for nothing."""
    plain = {key: value for key, value in noted.items() if isinstance(value, (str, int, float)) and value != ""}
    found: dict[str, Mapping[str, Any]] = {way: plain} if plain and way else {}
    for key, value in noted.items():
        if isinstance(value, dict):
            found |= _settings(cast("dict[str, Any]", value), f"{way}.{key}" if way else str(key))
    return found


def _short(value: str) -> str:
    return value if len(value) <= TEXT else f"{value[:TEXT]}... ({len(value):,} characters)"


def _made(path: Path, checkpoint: Checkpoint | None) -> Made | None:
    """The recipe beside a file; with the checkpoint, whether the noted digest still fits."""
    file = recipe_path(path)
    if not file.is_file():
        return None
    try:
        recipe = read_recipe(file)
        output = json.loads(file.read_text(encoding="utf-8")).get("output", {})
        noted, told = output.get("digest", ""), output.get("made")  # of what no method of recipes makes
        description = f"{recipe.method}: {told}" if isinstance(told, str) else describe(recipe)
    except (MergeError, AttributeError, KeyError, TypeError, ValueError) as error:
        return Made(str(file), f"unreadable: {error}")
    fits = None
    if checkpoint is not None and noted:
        fits = digest(checkpoint, kind_of(str(noted))) == noted
    inputs = tuple(
        f"{name}: {item.path if item.recipe is None else describe(item.recipe)}" for name, item in made_of(recipe)
    )
    return Made(str(file), description, inputs, str(noted), fits)


# -- text --------------------------------------------------------------------------------------------------------------


def _lines(seen: Inspection) -> list[str]:
    on_disk = sum(file.nbytes for file in seen.files)
    lines = [f"{seen.path}: {seen.layout}" + (f", {size(on_disk)} on disk" if seen.files else "")]
    if len(seen.files) > 1:
        lines += _table("files", seen.files)
    if len(seen.sections) > 1:
        lines += _table("sections", seen.sections)
    if seen.total is None:
        lines += ["", "several sections: choose one with --section for its tensors"]
    else:
        lines += _table("modules", (*seen.modules, Group("total", *_numbers(seen.total))))
        lines += _table("dtypes", seen.dtypes)
    lines += part("ties", [" = ".join(names) for names in seen.ties])
    counters = [item for item in seen.integers if item.name.endswith(COUNTERS[0])]
    integers = [f"{item.name}  {item.kind}" for item in seen.integers if item not in counters]
    lines += part("integers", integers + ([counted(len(counters), "BatchNorm counter")] if counters else []))
    lines += part("metadata", [f"{key}: {value}" for key, value in seen.metadata.items()])
    said = [
        f"{way}: {', '.join(f'{k} {_short(str(v))}' for k, v in own.items())}" for way, own in seen.settings.items()
    ]
    lines += part("settings", [line for one in said for line in textwrap.wrap(one, WIDTH, subsequent_indent="  ")])
    lines += part("other entries", [f"{item.name}: {item.kind}" for item in seen.others])
    return lines + _made_lines(seen.made)


def _numbers(group: Group) -> tuple[int, int, int]:
    return group.tensors, group.parameters, group.nbytes


def _table(title: str, groups: tuple[Group, ...]) -> list[str]:
    rows = [(group.name, f"{group.tensors:,}", amount(group.parameters), size(group.nbytes)) for group in groups]
    return ["", *table((title, "tensors", "parameters", "size"), rows)]


def _made_lines(made: Made | None) -> list[str]:
    if made is None:
        return []
    verdict = {None: "not compared", True: "fits the file", False: "does not fit: the file was changed since"}[
        made.fits
    ]
    noted = [f"digest {made.digest}: {verdict}"] if made.digest else []
    return part(f"made by {made.description}", [*made.inputs, *noted])
