"""Open a checkpoint of any layout as a lazy mapping of names to tensors."""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import copy
import json
import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from merge.checkpoint.formats import npz, t5x
from merge.checkpoint.formats.safetensors_file import Header, read_header
from merge.checkpoint.formats.tensors import Spec, TensorEntry
from merge.checkpoint.formats.torch_zip import TensorLeaf, TorchFile, read_tree
from merge.errors import MergeError

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES, npz.SUFFIX)
# Where training files keep weights, and which of these are averaged copies of others.
SECTIONS = ("model", "state_dict", "module", "model_ema", "state_dict_ema", "extra_state.ema")
AVERAGED = ("model_ema", "state_dict_ema", "extra_state.ema", "extra_state.ema_fp32_params")
WHOLE = "."
DICTIONARY = "global_dict_indices"  # an entry that gives every token's row of the embeddings
SHOWN = 20
_SHARD = re.compile(r".*-\d{5}-of-\d{5}\.(safetensors|bin|pt|pth)")


@dataclass(frozen=True)
class Checkpoint(Mapping[str, Tensor]):
    """An open checkpoint: `checkpoint[name]` maps the tensor's bytes, nothing else is read.

    Attributes:
        path: the file or folder as given.
        section: which part of a training file this is (`"model"`, `"extra_state.ema"`), `"."` for the file itself.
        sections: every part of the file that holds weights.
        metadata: the file's own text metadata; empty where it has none.
        entries: by name, where each tensor lies, its dtype and shape, in the order of the file; last those that a
            safetensors file leaves out because, by its metadata, they are tied to one that it has.
        files: the files that hold the tensors.
        tree: for torch files the whole content with inert stand-ins, else None.
        nested: for T5X folders and npz files what else they hold, else None.
    """

    path: Path
    section: str
    sections: tuple[str, ...]
    entries: Mapping[str, TensorEntry]
    files: tuple[Path, ...]
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    tree: TorchFile | None = field(default=None, repr=False)
    nested: t5x.T5XIndex | npz.NpzFile | None = field(default=None, repr=False)

    def __getitem__(self, name: str) -> Tensor:
        return self.entries[name].tensor()

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    @property
    def tokens(self) -> Mapping[str, int] | None:
        """The row of every token of the vocabulary, where the file says so (OFASys does), else None."""
        found = None if self.tree is None else lookup(self.tree.tree, DICTIONARY)
        if found is None and DICTIONARY in self.metadata:
            found = json.loads(self.metadata[DICTIONARY])
        plain = isinstance(found, dict) and all(type(k) is str and type(v) is int for k, v in found.items())
        return found if plain and found else None

    def with_tokens(self, tokens: Mapping[str, int] | None) -> Checkpoint:
        """The same with another dictionary, to be written. Raises MergeError where other weights have the old rows."""
        if tokens is None or self.tree is None or tokens == self.tokens:
            return self
        others = [name for name in self.sections if name not in (self.section, *AVERAGED)]
        if others:
            raise MergeError(
                f"{self.path}: the dictionaries differ and {', '.join(others)} would keep the old rows: merge that one"
            )
        tree = copy.copy(self.tree.tree)
        tree[DICTIONARY] = dict(tokens)
        return replace(self, tree=replace(self.tree, tree=tree))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors; tied ones count once."""
        return sum({entry.tie or name: entry.nbytes for name, entry in self.entries.items()}.values())


def open_checkpoint(path: str | Path, section: str = "auto") -> Checkpoint:
    """Open a file or folder lazily: headers are read and checked, tensors are mapped on access.

    Reads `.safetensors` (single, sharded with an index, or a Hugging Face folder), torch zip files (`.pt .pth .bin
    .ckpt`, also sharded), T5X folders (with the extra `t5x`) and `.npz`; the names of the last two are the keys on the
    way to an array, joined with dots. Pickles are never executed. `section` names a part of a training file, as
    listed by `.sections`; "auto" takes the only one.

        >>> checkpoint = open_checkpoint("vqa.pt", section="model")        # doctest: +SKIP
        >>> checkpoint["encoder.layer_norm.weight"].dtype                  # doctest: +SKIP
        torch.float16

    Raises MergeError for anything missing, broken, hostile or ambiguous, naming the file.
    """
    path = Path(path)
    try:
        return _open_folder(path, section) if path.is_dir() else _open_file(path, section)
    except OSError as error:
        raise MergeError(f"{path}: cannot be read: {error.strerror or error}") from error


def _open_file(path: Path, section: str) -> Checkpoint:
    if not path.exists():
        raise MergeError(f"{path}: no such file or folder")
    if not path.is_file():
        raise MergeError(f"{path}: not a file or folder")
    if path.name.endswith(".index.json"):
        return _open_shards(path, path, section)
    if path.suffix == ".safetensors":
        if path.stat().st_size and _starts(path, b"PK"):
            raise MergeError(f"{path}: holds a torch zip file; give it the suffix .pt")
        header = read_header(path)
        return _choose(path, section, {WHOLE: header.entries}, (path,), header.metadata)
    if path.suffix in TORCH_SUFFIXES:
        content = read_tree(path)
        return _choose(path, section, find_sections(path, content.tree), (path,), None, content)
    if path.suffix == npz.SUFFIX:
        arrays = npz.read_npz(path)
        return replace(_choose(path, section, {WHOLE: arrays.entries()}, (path,), None), nested=arrays)
    raise MergeError(f"{path}: unknown suffix {path.suffix!r}; known are {', '.join(SUFFIXES)} and folders")


def load_checkpoint(path: str | Path, section: str = "auto") -> dict[str, Tensor]:
    """A checkpoint's tensors as a plain dict in memory, independent of the file. Ties stay ties."""
    checkpoint = open_checkpoint(path, section)
    shared: dict[Hashable, Tensor] = {}
    for name, entry in checkpoint.entries.items():
        if (entry.tie or name) not in shared:
            shared[entry.tie or name] = entry.tensor().clone()
    return {name: shared[entry.tie or name] for name, entry in checkpoint.entries.items()}


def specs(tensors: Mapping[str, Tensor]) -> Mapping[str, Spec | TensorEntry]:
    """Dtypes, shapes and ties of a state dict by name, without touching a value of a lazy one."""
    if isinstance(tensors, Checkpoint):
        return tensors.entries
    return {name: Spec(value.dtype, tuple(value.shape), _memory_tie(value)) for name, value in tensors.items()}


def _memory_tie(value: Tensor) -> Hashable:
    if value.numel() == 0 or value.device.type == "meta":
        return None
    return (str(value.device), value.data_ptr(), value.dtype, tuple(value.shape), value.stride())


def find_sections(path: Path, tree: Any) -> dict[str, dict[str, TensorEntry]]:
    """Every part of a torch file's tree that holds weights, by name; a flat file is the section "."."""
    if not isinstance(tree, dict):
        raise MergeError(f"{path}: holds a {type(tree).__name__}, not a dictionary of tensors")
    found: dict[str, dict[str, TensorEntry]] = {}
    for name in (*SECTIONS, WHOLE):
        part = lookup(tree, name)
        if isinstance(part, dict) and not (found and name == WHOLE):
            leaves = {key: value.entry for key, value in part.items() if isinstance(value, TensorLeaf)}
            odd = [type(key).__name__ for key in leaves if type(key) is not str]
            if odd:
                raise MergeError(
                    f"{path}: {len(odd)} tensors of section {name!r} have no text for a name, but {odd[0]}"
                )
            if leaves:
                found[name] = leaves
    if not found:
        entries = [name[:80] for name in tree if isinstance(name, str)][:SHOWN]
        raise MergeError(f"{path}: no weights found; its entries are {', '.join(entries)}")
    return found


def lookup(tree: Any, section: str) -> Any:
    """The part of a tree under a dotted section name, None where there is none."""
    if section == WHOLE:
        return tree
    for key in section.split("."):
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _choose(
    path: Path,
    section: str,
    found: Mapping[str, Mapping[str, TensorEntry]],
    files: tuple[Path, ...],
    metadata: Mapping[str, str] | None,
    tree: TorchFile | None = None,
) -> Checkpoint:
    if section == "auto" and len(found) > 1:
        raise MergeError(f"{path}: has several sections with weights; choose one with --section: {', '.join(found)}")
    if section == "auto":
        section = next(iter(found))
    if section not in found:
        raise MergeError(f"{path}: has no section {section!r} with weights; it has {', '.join(found)}")
    entries = _with_aliases(path, found[section], metadata or {})
    return Checkpoint(path, section, tuple(found), entries, files, metadata or {}, tree)


def _with_aliases(
    path: Path, entries: Mapping[str, TensorEntry], metadata: Mapping[str, str]
) -> Mapping[str, TensorEntry]:
    """Entries for names that metadata maps to one that is there: `safetensors.torch.save_model` leaves ties out so."""
    aliases = {name: kept for name, kept in metadata.items() if kept in entries and name not in entries}
    if not aliases:
        return entries
    tied = {kept: replace(entries[kept], storage=(str(path), kept)) for kept in aliases.values()}
    complete = {name: tied.get(name, entry) for name, entry in entries.items()}
    return complete | {name: tied[kept] for name, kept in aliases.items()}


def _starts(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


# -- folders ---------------------------------------------------------------------------------------------------------


def _open_folder(folder: Path, section: str) -> Checkpoint:
    indexes = sorted(folder.glob("*.index.json"))
    if len(indexes) > 1:
        raise MergeError(f"{folder}: has several indexes; open one of {', '.join(path.name for path in indexes)}")
    if indexes:
        return _open_shards(folder, indexes[0], section)
    for suffixes in ((".safetensors",), TORCH_SUFFIXES, (npz.SUFFIX,)):
        weights = sorted(path for path in folder.iterdir() if path.suffix in suffixes and path.is_file())
        if len(weights) > 1:
            names = ", ".join(path.name for path in weights[:5])
            raise MergeError(f"{folder}: has {len(weights)} weight files and no index; open one of them: {names}")
        if weights:
            one = open_checkpoint(weights[0], section)
            return replace(one, path=folder)
    if (folder / t5x.INDEX).is_file():
        return _open_t5x(folder, section)
    raise MergeError(f"{folder}: no weights in this folder (looked for {', '.join(SUFFIXES)})")


def _open_t5x(folder: Path, section: str) -> Checkpoint:
    """The weights of a T5X folder, or the section asked for: an optimizer's arrays may be absent unless wanted."""
    index = t5x.read_index(folder)
    sections = index.sections()
    if section == "auto":
        section = sections[0]
    found = {name: index.entries(name) if name == section else {} for name in sections}
    return replace(_choose(folder, section, found, (folder / t5x.INDEX,), None), nested=index)


def _open_shards(path: Path, index: Path, section: str) -> Checkpoint:
    """Shards under an index. Index and shards must agree in both directions: a stale index is an error."""
    weight_map = _weight_map(index)
    folder = index.parent
    headers: dict[str, Header] = {}
    for file in dict.fromkeys(weight_map.values()):
        if not (folder / file).is_file():
            raise MergeError(f"{index}: names the shard {file}, which is missing")
        headers[file] = _read_shard(folder / file)
    _check_index(index, weight_map, headers)
    entries = {name: entry for header in headers.values() for name, entry in header.entries.items()}
    metadata = next(iter(headers.values())).metadata
    noted = _index_metadata(index)
    if any(kept in entries for kept in noted.values()):  # huggingface_hub notes ties here where there are shards
        metadata = {**(metadata or {}), **noted}
    return _choose(path, section, {WHOLE: entries}, tuple(folder / file for file in headers), metadata)


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        pairs = {str(name): str(file) for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MergeError(f"{index}: not an index with a weight_map: {type(error).__name__}: {error}") from error
    outside = [file for file in pairs.values() if Path(file).name != file]
    if outside or not pairs:
        raise MergeError(f"{index}: " + (f"names {outside[0]!r}, outside its folder" if outside else "names no tensor"))
    if index.name in pairs.values():
        raise MergeError(f"{index}: names itself as a shard")
    return pairs


def _index_metadata(index: Path) -> dict[str, str]:
    """The texts among an index's metadata."""
    noted = json.loads(index.read_text(encoding="utf-8")).get("metadata")
    items = noted.items() if isinstance(noted, dict) else ()
    return {name: value for name, value in items if isinstance(value, str)}


def _read_shard(path: Path) -> Header:
    if path.suffix == ".safetensors":
        return read_header(path)
    shard = open_checkpoint(path, WHOLE)
    return Header(dict(shard.entries), None)


def _check_index(index: Path, weight_map: Mapping[str, str], headers: Mapping[str, Header]) -> None:
    missing = [name for name, file in weight_map.items() if name not in headers[file].entries]
    if missing:
        raise MergeError(f"{index}: stale: says that {missing[0]!r} is in {weight_map[missing[0]]}, which lacks it")
    for file, header in headers.items():
        extra = [name for name in header.entries if weight_map.get(name) != file]
        if extra:
            raise MergeError(f"{index}: stale: {file} holds {extra[0]!r}, which the index does not place there")
    suffix = Path(next(iter(headers))).suffix
    others = [file.name for file in sorted(index.parent.glob(f"*{suffix}")) if file.name not in headers]
    shards = [name for name in others if _SHARD.fullmatch(name) or name == index.name.removesuffix(".index.json")]
    if shards:
        raise MergeError(f"{index}: stale: {shards[0]} lies beside its shards and is not in the index")
