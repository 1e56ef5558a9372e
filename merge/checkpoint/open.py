"""Open a checkpoint of any format as a lazy mapping of names to tensors."""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import html
import itertools
import json
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.checkpoint.folder import INDEX, MODULES, PIPELINE, has_weights, is_another, parts_in, weights_in
from merge.checkpoint.formats import FORMATS, format_of
from merge.checkpoint.formats.elements import element_of
from merge.checkpoint.formats.foreign import FOREIGN
from merge.checkpoint.formats.format import (
    WHOLE,
    Content,
    Format,
    Glimpse,
    Specs,
    dictionary_in,
    name_problem,
    noted_ties,
    path_of,
    without_doubles,
)
from merge.checkpoint.formats.tensors import Spec, TensorEntry
from merge.checkpoint.hub import located
from merge.checkpoint.names import new_names
from merge.checkpoint.noted import noted
from merge.errors import MergeError, beside

if TYPE_CHECKING:
    from torch import Tensor

SHOWN = 20
_SHARD = re.compile(r".*-\d{5}-of-\d{5}\.(safetensors|bin|pt|pth)")


@dataclass(frozen=True, repr=False)
class Checkpoint(Mapping[str, "Tensor"]):
    """An open checkpoint: `checkpoint[name]` maps the tensor's bytes, nothing else is read.

    Attributes:
        path: the file or folder as given.
        section: which part of a training file this is (`"model"`, `"extra_state.ema"`), `"."` for the file itself.
        sections: every part of the file that holds weights.
        entries: by name, where each tensor lies, its dtype and shape, in the order of the file; last those that a
            safetensors file leaves out because, by its metadata, they are tied to one that it has.
        files: the files that hold the tensors.
        format: the files' entry of `FORMATS`.
        content: all that the format's reader found; of shards only tensors and metadata.
        metadata: the file's own text metadata; empty where it has none.
        parts: of a folder of several parts, each as a checkpoint of its own whose `path` is its file or index, by what
            its tensors' names begin with here (`"unet/"`, `""` for the folder's own).
        rename: the rules by which `renamed` has given tensors other names.
        stored: what the file calls these tensors, by their other names.
        hidden: by the file's names, tensors that a merge leaves out: they count for the digest.
    """

    path: Path
    section: str
    sections: tuple[str, ...]
    entries: Mapping[str, TensorEntry]
    files: tuple[Path, ...]
    format: Format
    content: Content
    metadata: Mapping[str, str]
    parts: Mapping[str, Checkpoint] = field(default_factory=dict[str, "Checkpoint"])
    rename: tuple[str, ...] = ()
    stored: Mapping[str, str] = field(default_factory=dict[str, str])
    hidden: Mapping[str, TensorEntry] = field(default_factory=dict[str, TensorEntry])

    def __getitem__(self, name: str) -> Tensor:
        return self.entries[name].tensor()

    def read(self, name: str) -> Tensor:
        """Read a tensor into memory of its own, for using all of it: it outlives whatever happens to the file."""
        return self.entries[name].loaded()

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __repr__(self) -> str:
        section = "" if self.section == WHOLE else f"section {self.section}, "
        return f"Checkpoint({self.path}: {section}{len(self)} tensors, {self.nbytes:,} bytes)"

    def _repr_html_(self) -> str:
        """A table of the first tensors, for notebooks."""
        shown = list(self.entries.items())[:SHOWN]
        rows = [(name, entry.element.name, str(list(entry.shape))) for name, entry in shown]
        rows += [(f"and {len(self) - SHOWN} more", "", "")] if len(self) > SHOWN else []
        cells = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows)
        head = "<tr><th>tensor</th><th>dtype</th><th>shape</th></tr>"
        body = "".join(f"<tr>{row}</tr>" for row in cells)
        return f"<table><caption>{html.escape(repr(self))}</caption>{head}{body}</table>"

    def renamed(self, rules: Sequence[str]) -> Checkpoint:
        """Give the same checkpoint under other names, by rules as `merge.checkpoint.names` reads them.

        Ties stay, also where the metadata notes them. Raises MergeError for what is no rule, and for two names that
        become one.
        """
        if not rules:
            return self
        now = new_names(self.entries, rules, str(self.path))
        entries = {now[name]: entry for name, entry in self.entries.items()}
        ties = {name: kept for name, kept in self.metadata.items() if name in now and kept in now}
        metadata = {name: text for name, text in self.metadata.items() if name not in ties}
        metadata |= {now[name]: now[kept] for name, kept in ties.items()}
        stored = {new: self.stored.get(name, name) for name, new in now.items()}
        stored = {new: name for new, name in stored.items() if new != name}
        whole = (*self.rename, *rules)
        return replace(self, entries=entries, metadata=metadata, rename=whole, stored=stored)

    @property
    def layout(self) -> str:
        """What lies on the disk, in a few words: `"4 safetensors shards under an index"`."""
        if self.parts:
            return f"folder of {len(self.parts)} parts ({', '.join(prefix or './' for prefix in self.parts)})"
        if self.format.index:
            return f"{self.format.label} folder"
        if len(self.files) > 1:
            return f"{len(self.files)} {self.format.label} shards under an index"
        return f"{self.format.label} file" + (" in a folder" if self.path.is_dir() else "")

    @property
    def tokens(self) -> Mapping[str, int] | None:
        """The row of every token of the vocabulary, where the file says so (OFASys does), else None."""
        found = self.content.dictionary or dictionary_in(self.metadata)
        plain = isinstance(found, dict) and all(type(k) is str and type(v) is int for k, v in found.items())
        return found if plain and found else None

    @property
    def noted(self) -> Mapping[str, Mapping[str, Any]]:
        """What a training file notes of the model and the run (`cfg`, `args`, `hparams`, ...), by the entry's name."""
        return noted(getattr(self.content.kept, "tree", None))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors; tied ones count once."""
        return sum({entry.tie or name: entry.nbytes for name, entry in self.entries.items()}.values())


def open_checkpoint(path: str | Path, section: str = "auto") -> Checkpoint:
    """Open a file or folder lazily: headers are read and checked, tensors are mapped on access.

    Reads every format of `merge.checkpoint.formats.FORMATS`: single files, shards with an index, folders; names of
    `.npz` and T5X are the keys on the way to an array, joined with dots. Pickles are never executed. `section` names a
    part of a training file, as listed by `.sections`; "auto" takes the only one.

    A mapped tensor is the file: while a script holds it, nobody may cut the file short (the system ends the script, by
    SIGBUS) or write into it. `Checkpoint.read`, `load_checkpoint` and merges give or read tensors of their own. A live
    path that holds endpoints of files on the CPU maps them.

        >>> checkpoint = open_checkpoint("vqa.pt", section="model")                          # doctest: +SKIP
        >>> first, tensor = next(iter(checkpoint.items()))                                  # doctest: +SKIP

    Raises MergeError for anything missing, broken, hostile or ambiguous, naming the file.
    """
    return find_checkpoint(path).choose(section)


def specs(tensors: Mapping[str, Tensor]) -> Specs:
    """Dtypes, shapes and ties of a state dict by name, without touching a value of a lazy one."""
    if isinstance(tensors, Checkpoint):
        return tensors.entries
    return {
        name: Spec(element_of(value.dtype), tuple(value.shape), _memory_tie(value)) for name, value in tensors.items()
    }


def _memory_tie(value: Tensor) -> Hashable:
    if value.numel() == 0 or value.device.type == "meta":
        return None
    return (str(value.device), value.data_ptr(), value.dtype, tuple(value.shape), value.stride())


# -- what lies at a path ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What lies at a path before one of its sections is chosen."""

    path: Path
    format: Format
    content: Content
    files: tuple[Path, ...]
    parts: Mapping[str, Checkpoint] = field(default_factory=dict[str, "Checkpoint"])

    def choose(self, section: str) -> Checkpoint:
        """Open a section. Raises MergeError where it is not there, and for "auto" where there are several."""
        path, content = self.content.path, self.content
        sections = tuple(content.sections)
        if section == "auto":
            section = content.default or sections[0]
            if not content.default and len(sections) > 1:
                advice = content.advice or f"choose one, as section={sections[0]!r}"
                raise MergeError(f"{path}: has several sections with weights: {self._listed()}; {advice}")
        if section not in sections:
            raise MergeError(f"{path}: has no section {section!r} with weights; it has {self._listed()}")
        entries, metadata = content.sections[section], content.metadata or {}
        # `safetensors.torch.save_model` leaves tied names out: the metadata maps them to the one that is there.
        aliases = noted_ties(metadata, entries)
        if aliases:
            tied = {kept: replace(entries[kept], storage=(str(path), kept)) for kept in aliases.values()}
            complete = {name: tied.get(name, entry) for name, entry in entries.items()}
            entries = complete | {name: tied[kept] for name, kept in aliases.items()}
        content = replace(content, section=section)
        found = (entries, self.files, self.format, content, metadata, self.parts)
        return Checkpoint(self.path, section, sections, *found)

    def _listed(self) -> str:
        """The sections, each with how many tensors it has."""
        names = list(self.content.sections)
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        return ", ".join(f"{name} ({self._count(name)})" for name in names[:SHOWN]) + more

    def _count(self, section: str) -> str:
        try:
            count = len(self.content.sections[section])
        except MergeError:
            return "not readable"  # arrays of one that nobody wants may be absent
        return f"{count} tensor" + "s" * (count != 1)


def find_checkpoint(path: str | Path) -> Found:
    """Read the headers of what lies at a path. Raises MergeError as `open_checkpoint` does."""
    path = located(path_of(path, "the checkpoint to open"))
    try:
        if path.is_dir():
            return _in_folder(path)
        if not path.exists():
            raise MergeError(f"{path}: no such file or folder{beside(path)}")
        if not path.is_file():
            raise MergeError(f"{path}: not a file or folder")
        return _at(path)
    except OSError as error:
        raise MergeError(f"{path}: cannot be read: {error.strerror or error}") from error


def _in_file(path: Path) -> Found:
    """Read a file as what its bytes say; a suffix only tells whose message a broken file gets."""
    look = Glimpse.of(path)
    format = format_of(look)
    for kind in FOREIGN.values():  # zip files of other programs may hold a pickle of torch's too
        if kind.is_inside(look) or (format is None and kind.matches(look)):
            raise MergeError(f"{path}: {kind}")
    format = format or next((format for format in FORMATS.values() if not format.index and format.named(path)), None)
    if format is None:
        read = ", ".join(format.label for format in FORMATS.values())
        raise MergeError(f"{path}: is no checkpoint by its first bytes ({look.start[:8]!r}); read are {read}")
    return Found(path, format, format.read(path), (path,))


def _in_folder(folder: Path) -> Found:
    """Read a folder's own weights, or those of its parts, or both: see `merge.checkpoint.folder`."""
    distributed = FORMATS["distributed"]
    if any(folder.glob(f"*{distributed.suffixes[0]}")) and not (folder / distributed.index).is_file():
        lacks = f"holds parts of a torch distributed checkpoint, and not its index, {distributed.index}"
        raise MergeError(f"{folder}: {lacks}: copy the whole folder, also files whose names begin with a dot")
    told = any((folder / name).is_file() for name in (PIPELINE, MODULES))
    root = None if (folder / PIPELINE).is_file() else weights_in(folder, look=True)
    own = None if root is None else replace(_at(root), path=folder)
    places = parts_in(folder, strict=told) if own is None or not own.format.index else {}
    others = [prefix for prefix in places if is_another(prefix)]
    parts: dict[str, Checkpoint] = {}
    for prefix, place in places.items():
        if prefix not in others:
            try:
                parts[prefix] = _at(place).choose("auto")
            except MergeError:
                if told or own is None:
                    raise
    if own is None and not told and (len(parts) < 2 or _one_model(list(parts.values()))):
        others, parts = list(places), {}
    if own is not None:
        whole = own.choose("auto") if parts else None
        same = [prefix for prefix, part in parts.items() if whole and not told and _one_model([whole, part])]
        parts = {prefix: part for prefix, part in parts.items() if prefix not in same}
        parts = {"": replace(whole, path=root), **parts} if parts and whole and root else {}
    if parts:
        return _joined(folder, parts)
    if own is not None:
        return own
    others = [prefix.rstrip("/") for prefix in others]
    others = others or [item.name for item in sorted(folder.iterdir()) if item.is_dir() and has_weights(item)]
    if others:
        names = ", ".join(others[:SHOWN])
        raise MergeError(f"{folder}: has no weights itself; open one of the folders in it that have: {names}")
    _refuse_foreign(folder)
    raise MergeError(f"{folder}: no weights in this folder, by the first bytes of its files")


def _refuse_foreign(folder: Path) -> None:
    """Raise MergeError for a folder that is, or holds, something which other programs read as weights."""
    looks = [Glimpse.of(path) for path in sorted(folder.iterdir()) if path.is_file()]
    for kind in FOREIGN.values():
        if kind.names_fit(folder.name):
            raise MergeError(f"{folder}: {kind}")
        for look in looks:
            if not kind.beside and kind.matches(look):
                raise MergeError(f"{folder}: {look.name} {kind}")


def _at(place: Path) -> Found:
    """Read a file, an index or a folder that is a format."""
    if place.is_dir():
        format = next(format for format in FORMATS.values() if format.index and (place / format.index).is_file())
        return Found(place, format, format.read(place), (place / format.index,))
    return _under_index(place, place) if INDEX.fullmatch(place.name) else _in_file(place)


def _one_model(parts: Sequence[Checkpoint]) -> bool:
    """Whether two of these are checkpoints of one model: nearly all names and shapes are the same."""
    shapes = [{(name, entry.shape) for name, entry in part.entries.items()} for part in parts]
    return any(len(a & b) > 0.9 * len(a | b) for a, b in itertools.combinations(shapes, 2))


def _joined(folder: Path, parts: Mapping[str, Checkpoint]) -> Found:
    """Several parts as one checkpoint, whose names begin with the parts' folders."""
    entries: dict[str, TensorEntry] = {}
    for prefix, part in parts.items():
        for name, entry in part.entries.items():
            if prefix + name in entries:
                raise MergeError(f"{folder}: two of its parts have a tensor {prefix + name!r}")
            entries[prefix + name] = entry
    files = tuple(file for part in parts.values() for file in part.files)
    first = next(iter(parts.values()))
    return Found(folder, first.format, Content(folder, {WHOLE: entries}), files, parts)


# -- shards under an index -------------------------------------------------------------------------------------------


def _under_index(path: Path, index: Path) -> Found:
    """Read shards under an index. Index and shards must agree in both directions: a stale index is an error."""
    weight_map, noted = _read_index(index)
    folder = index.parent
    found: dict[str, Found] = {}
    for file in dict.fromkeys(weight_map.values()):
        if not (folder / file).is_file():
            raise MergeError(f"{index}: names the shard {file}, which is missing")
        found[file] = _in_file(folder / file)
    shards = {file: one.choose(WHOLE).content.sections[WHOLE] for file, one in found.items()}
    _check_index(index, weight_map, shards)
    entries = {name: entry for shard in shards.values() for name, entry in shard.items()}
    first = next(iter(found.values()))
    metadata = first.content.metadata
    if noted_ties(noted, entries):  # huggingface_hub notes ties here where there are shards
        metadata = {**(metadata or {}), **noted}
    return Found(path, first.format, Content(path, {WHOLE: entries}, metadata), tuple(folder / file for file in found))


def _read_index(index: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Give the file of every tensor, and the texts among the index's metadata."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"), object_pairs_hook=without_doubles)
        pairs = {str(name): str(file) for name, file in content["weight_map"].items()}
        name_problem(itertools.chain(pairs, pairs.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MergeError(f"{index}: not an index with a weight_map: {type(error).__name__}: {error}") from error
    outside = [file for file in dict.fromkeys(pairs.values()) if Path(file).name != file or "\0" in file]
    if outside or not pairs:
        raise MergeError(f"{index}: " + (f"names {outside[0]!r}, outside its folder" if outside else "names no tensor"))
    if index.name in pairs.values():
        raise MergeError(f"{index}: names itself as a shard")
    noted = content.get("metadata")
    items = noted.items() if isinstance(noted, dict) else ()
    return pairs, {name: value for name, value in items if isinstance(value, str)}


def _check_index(index: Path, weight_map: Mapping[str, str], shards: Mapping[str, Mapping[str, TensorEntry]]) -> None:
    missing = [name for name, file in weight_map.items() if name not in shards[file]]
    if missing:
        raise MergeError(f"{index}: stale: says that {missing[0]!r} is in {weight_map[missing[0]]}, which lacks it")
    for file, entries in shards.items():
        extra = [name for name in entries if weight_map.get(name) != file]
        if extra:
            raise MergeError(f"{index}: stale: {file} holds {extra[0]!r}, which the index does not place there")
    suffix = Path(next(iter(shards))).suffix
    beside = [path for path in index.parent.iterdir() if INDEX.fullmatch(path.name) and path != index]
    known = {*shards, *(file for path in beside for file in _read_index(path)[0].values())}
    others = [file.name for file in sorted(index.parent.glob(f"*{suffix}")) if file.name not in known]
    left = [name for name in others if _SHARD.fullmatch(name) or name == index.name.removesuffix(".index.json")]
    if left:
        raise MergeError(f"{index}: stale: {left[0]} lies beside its shards and is not in the index")
