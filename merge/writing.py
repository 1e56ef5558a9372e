"""Plan and write an output checkpoint: its layout is known, byte by byte, before the first tensor is computed."""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import zlib
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from merge.checkpoint import AVERAGED, SECTIONS, SUFFIXES, TORCH_SUFFIXES, Checkpoint, lookup
from merge.digests import raw_bytes
from merge.errors import MergeError
from merge.files import replacing
from merge.formats import npz, t5x
from merge.formats.entry import TensorEntry
from merge.formats.pickle_data import Opaque, Persistent
from merge.formats.safetensors_file import encode_header
from merge.formats.torch_zip import NewLeaf, TensorLeaf, plan_zip
from merge.state_dict import specs

_NOT_COPIED = (".index.json", ".recipe.json")
SHARD_SIZE = 5_000_000_000
_KEPT_OPEN = 256  # files; of a folder with more each is opened for every block
_WRITING = os.O_WRONLY | os.O_CREAT


@dataclass(frozen=True)
class Slot:
    """A tensor to be written. Names with one `storage` share their bytes in formats that can."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    storage: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class FilePlan:
    """One file of an output: its size, its fixed bytes, where each tensor's bytes go.

    `passed` are tensors of the input's other content and where they go: they are copied, block by block.
    `closing`, where a format wants it, takes the CRC-32 of what was written under each name and gives the last bytes.
    """

    name: str
    size: int
    chunks: Sequence[tuple[int, bytes]]
    starts: Mapping[str, int]
    passed: Mapping[str, tuple[TensorEntry, int]] = field(default_factory=dict[str, tuple[TensorEntry, int]])
    closing: Callable[[Mapping[str, int]], list[tuple[int, bytes]]] | None = None


@dataclass(frozen=True)
class OutputPlan:
    """All files of an output (one, or a folder's), and notes on what was left out."""

    files: Sequence[FilePlan]
    folder: bool
    notes: tuple[str, ...] = ()
    copied: Mapping[str, Path] = field(default_factory=dict[str, Path])
    """Files taken over as they are, by their name in the output's folder."""

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files) + sum(path.stat().st_size for path in self.copied.values())


def plan_output(
    path: Path,
    slots: Mapping[str, Slot],
    *,
    like: Checkpoint | None = None,
    metadata: Mapping[str, str] | None = None,
    shard_size: int | None = None,
) -> OutputPlan:
    """Lay out an output whose format follows its suffix: `.safetensors`, torch (`.pt .pth .bin .ckpt`), `.npz`, `.t5x`
    (a T5X folder), none (a folder of safetensors).

    `like` is the checkpoint whose other content is kept: a torch file's other entries, a folder's other files.
    Raises MergeError for an unknown suffix and for content that the format cannot hold.
    """
    planned = {npz.SUFFIX: _plan_npz, t5x.SUFFIX: _plan_t5x, **dict.fromkeys(TORCH_SUFFIXES, _plan_torch)}
    if path.suffix in planned:
        if shard_size is not None:
            raise MergeError(f"{path}: only safetensors are written in shards; name a folder or leave --shard-size out")
        return planned[path.suffix](path, slots, like)
    slots = _without_aliases(slots, metadata or {})
    if path.suffix == ".safetensors" and shard_size is None:
        head, starts, size = encode_header(_layout(slots), metadata)
        return OutputPlan([FilePlan("", size, [(0, head)], starts)], folder=False)
    if path.suffix and path.suffix != ".safetensors" and not path.is_dir():
        known = ", ".join((*SUFFIXES, t5x.SUFFIX))
        raise MergeError(f"{path}: unknown suffix {path.suffix!r}; known are {known}, or none for a folder")
    return _plan_folder(slots, like, metadata, shard_size or SHARD_SIZE)


def _without_aliases(slots: Mapping[str, Slot], metadata: Mapping[str, str]) -> dict[str, Slot]:
    """Without names that the metadata maps to one that they are tied to, as in the input: see `open_checkpoint`."""
    kept = {name: slots.get(metadata.get(name, "")) for name in slots}
    return {name: slot for name, slot in slots.items() if (to := kept[name]) is None or to.storage != slot.storage}


def _layout(slots: Mapping[str, Slot]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {name: (slot.dtype, slot.shape) for name, slot in slots.items()}


def _plan_folder(
    slots: Mapping[str, Slot], like: Checkpoint | None, metadata: Mapping[str, str] | None, shard_size: int
) -> OutputPlan:
    shards: list[dict[str, Slot]] = [{}]
    filled = 0
    for name, slot in slots.items():
        if shards[-1] and filled + slot.nbytes > shard_size:
            shards.append({})
            filled = 0
        shards[-1][name] = slot
        filled += slot.nbytes
    count = len(shards)
    names = (
        [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)] if count > 1 else ["model.safetensors"]
    )
    files: list[FilePlan] = []
    for name, shard in zip(names, shards, strict=True):
        head, starts, size = encode_header(_layout(shard), metadata)
        files.append(FilePlan(name, size, [(0, head)], starts))
    if count > 1:
        weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        aliases = {name: to for name, to in (metadata or {}).items() if to in slots and name not in slots}
        noted = {"total_size": sum(slot.nbytes for slot in slots.values()), **aliases}
        index = {"metadata": noted, "weight_map": weight_map}
        text = json.dumps(index, indent=2).encode()
        files.append(FilePlan("model.safetensors.index.json", len(text), [(0, text)], {}))
    copied: dict[str, Path] = {}
    if like is not None and like.path.is_dir() and not isinstance(like.nested, t5x.T5XIndex):
        copied = {
            item.name: item
            for item in sorted(like.path.iterdir())
            if item.is_file() and item.suffix not in SUFFIXES and not item.name.endswith(_NOT_COPIED)
        }
    return OutputPlan(files, folder=True, copied=copied)


# -- T5X folders and npz files ---------------------------------------------------------------------------------------


def _plan_t5x(path: Path, slots: Mapping[str, Slot], like: Checkpoint | None) -> OutputPlan:
    """A T5X folder; after one that was read, everything but the section's arrays is taken over."""
    index = like.nested if like is not None and isinstance(like.nested, t5x.T5XIndex) else None
    section = "" if like is None else like.section
    files = [
        FilePlan(name, file.size, file.chunks, file.starts)
        for name, file in t5x.lay_out(path, _layout(slots), index, section).items()
    ]
    copied = {} if index is None else index.others(section)
    written = {file.name for file in files}
    kept = {name: item for name, item in copied.items() if name not in written and not name.endswith(_NOT_COPIED)}
    return OutputPlan(files, folder=True, copied=kept)


def _plan_npz(path: Path, slots: Mapping[str, Slot], like: Checkpoint | None) -> OutputPlan:
    before = like.nested if like is not None and isinstance(like.nested, npz.NpzFile) else None
    plan = npz.plan_npz(path, _layout(slots), before)

    def closing(crcs: Mapping[str, int]) -> list[tuple[int, bytes]]:
        return plan.closing({name: crcs.get(slot.storage, 0) for name, slot in slots.items()})

    return OutputPlan([FilePlan("", plan.size, plan.chunks, plan.starts, closing=closing)], folder=False)


# -- torch files -----------------------------------------------------------------------------------------------------


def _plan_torch(path: Path, slots: Mapping[str, Slot], like: Checkpoint | None) -> OutputPlan:
    others: dict[str, TensorEntry] = {}
    notes: tuple[str, ...] = ()
    archive = path.stem
    tree: Any = {name: NewLeaf(slot.dtype, slot.shape, slot.storage) for name, slot in slots.items()}
    if like is not None and like.tree is not None:
        archive = like.tree.archive
        tree, notes = _replaced(like.tree.tree, like.section, slots, others)
    plan = plan_zip(tree, archive)
    starts = {name: plan.starts[slot.storage] for name, slot in slots.items() if slot.storage in plan.starts}
    passed = {storage: (entry, plan.starts[storage]) for storage, entry in others.items()}

    def closing(crcs: Mapping[str, int]) -> list[tuple[int, bytes]]:
        return plan.closing({slots[name].storage if name in slots else name: crc for name, crc in crcs.items()})

    return OutputPlan([FilePlan("", plan.size, plan.chunks, starts, passed, closing)], folder=False, notes=notes)


def _replaced(
    tree: Any, section: str, slots: Mapping[str, Slot], others: dict[str, TensorEntry]
) -> tuple[Any, tuple[str, ...]]:
    """The tree with the section's weights replaced and stale averaged copies left out; other tensors go to `others`."""
    part = lookup(tree, section)
    stale = {name: _place(tree, name) for name in AVERAGED if name != section and _is_copy(lookup(tree, name), part)}
    left_out = set(stale.values())
    notes = [f"left out {name}: a copy of weights that were not merged" for name in stale]
    done: dict[int, Any] = {}

    def copy(value: Any) -> Any:
        if isinstance(value, TensorLeaf):
            storage = f"other {value.entry.tie}"
            others[storage] = value.entry
            return NewLeaf(value.entry.dtype, value.entry.shape, storage, value)
        if isinstance(value, Persistent):
            raise MergeError("the first input holds a storage outside of a tensor; save it again without")
        if type(value) is tuple:
            if id(value) not in done:
                done[id(value)] = tuple(copy(item) for item in value)
            return done[id(value)]
        if not isinstance(value, (dict, list, Opaque)):
            return value
        if id(value) not in done:
            done[id(value)] = Opaque(value.factory, (), value.new) if isinstance(value, Opaque) else type(value)()
            fill(value, done[id(value)])
        return done[id(value)]

    def fill(old: Any, new: Any) -> None:
        if isinstance(old, list):
            new.extend(copy(item) for item in old)
        elif isinstance(old, Opaque):
            new.args, new.state, new.has_state = copy(old.args), copy(old.state), old.has_state
            new.appended, new.items = copy(old.appended), copy(old.items)
        elif old is part:
            new.update(_section(old, slots, copy))
        else:
            new.update((key, copy(item)) for key, item in old.items() if (id(old), key) not in left_out)
        if isinstance(old, OrderedDict):
            vars(new).update(copy(vars(old)))

    try:
        result = copy(tree)
    except RecursionError as error:
        raise MergeError("the first input nests its other entries too deeply to be written again") from error
    if section in AVERAGED:
        kept = [name for name in SECTIONS if name not in AVERAGED and lookup(tree, name) is not None]
        notes += [f"{name} still holds the first input's weights: only {section} was merged" for name in kept]
    return result, tuple(notes)


def _place(tree: Any, section: str) -> tuple[int, str]:
    """Where a section hangs: the identity of the dictionary that holds it, and its key."""
    parent, _, key = section.rpartition(".")
    return id(lookup(tree, parent) if parent else tree), key


def _is_copy(value: Any, part: Any) -> bool:
    """Whether a value holds weights other than those that are replaced."""
    return isinstance(value, dict) and value is not part and any(isinstance(v, TensorLeaf) for v in value.values())


def _section(part: dict[Any, Any], slots: Mapping[str, Slot], copy: Callable[[Any], Any]) -> dict[Any, Any]:
    """The section's dictionary with new leaves in the old order; what is no tensor stays."""
    result: dict[Any, Any] = {}
    for name, value in part.items():
        if not isinstance(value, TensorLeaf):
            result[name] = copy(value)
        elif name in slots:
            slot = slots[name]
            result[name] = NewLeaf(slot.dtype, slot.shape, slot.storage, value)
    for name, slot in slots.items():
        if name not in result:
            result[name] = NewLeaf(slot.dtype, slot.shape, slot.storage)
    return result


# -- writing ---------------------------------------------------------------------------------------------------------


class Writer:
    """Writes tensors of one output at their planned places; safe to call from several threads for different tensors."""

    def __init__(self, plan: OutputPlan, partial: Path):
        self._plan = plan
        self._places: dict[str, list[tuple[int, int]]] = {}
        self._crcs: list[dict[str, int]] = [{} for _ in plan.files]
        self._sealed = [number for number, file in enumerate(plan.files) if file.closing is not None]
        self._paths = [partial / file.name if plan.folder else partial for file in plan.files]
        self._descriptors: dict[int, int] = {}
        for number, file in enumerate(plan.files):
            self._paths[number].parent.mkdir(parents=True, exist_ok=True)
            if len(plan.files) <= _KEPT_OPEN:
                self._descriptors[number] = os.open(self._paths[number], _WRITING, 0o666)
            with self._opened(number) as descriptor:
                os.ftruncate(descriptor, file.size)
                for offset, chunk in file.chunks:
                    write_at(descriptor, chunk, offset)
            for name, start in file.starts.items():
                self._places.setdefault(name, []).append((number, start))
            for name, (entry, start) in file.passed.items():
                self._places[name] = [(number, start)]
                for offset, block in blocks_of(entry):
                    self.write((name,), offset, block)
        for name, path in plan.copied.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, partial / name)

    @contextlib.contextmanager
    def _opened(self, number: int) -> Generator[int]:
        """The descriptor of a file: of many files none stays open, as systems limit their number."""
        if number in self._descriptors:
            yield self._descriptors[number]
            return
        descriptor = os.open(self._paths[number], _WRITING, 0o666)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def write(self, names: Sequence[str], offset: int, data: memoryview) -> None:
        """Write bytes of a tensor, `offset` into it, under all its names. Blocks of a tensor come in order."""
        places = dict.fromkeys(place for name in names for place in self._places.get(name, ()))
        for number, start in () if _is_zero(data) else places:  # new files read as zeros: a hole takes no disk
            with self._opened(number) as descriptor:
                write_at(descriptor, data, start + offset)
        for number in self._sealed:
            crcs = self._crcs[number]
            crcs[names[0]] = zlib.crc32(data, crcs.get(names[0], 0))

    def close(self) -> None:
        """Write what a format wants last."""
        for number, file in enumerate(self._plan.files):
            for offset, chunk in file.closing(self._crcs[number]) if file.closing else ():
                with self._opened(number) as descriptor:
                    write_at(descriptor, chunk, offset)

    def fill_in(self, old: bytes, new: bytes) -> None:
        """Replace text in the files' headers by other text of the same length, known only at the end."""
        for number, file in enumerate(self._plan.files):
            for offset, chunk in file.chunks:
                at = chunk.find(old) if old else -1
                if at >= 0:
                    with self._opened(number) as descriptor:
                        write_at(descriptor, new, offset + at)

    def release(self) -> None:
        """Close the files, also after an error."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])


def blocks_of(entry: TensorEntry) -> Iterator[tuple[int, memoryview]]:
    """A stored tensor's row-major bytes in blocks, with the offset of each."""
    if entry.stride is not None:
        yield 0, raw_bytes(entry.tensor())
        return
    buffer = memoryview(bytearray(min(entry.nbytes, 1 << 20)))
    for offset in range(0, entry.nbytes, 1 << 20):
        block = buffer[: min(1 << 20, entry.nbytes - offset)]
        entry.file.read_into(block, entry.offset + offset)
        yield offset, block


def _is_zero(data: memoryview) -> bool:
    """Whether all bytes are zero; decided by the first few in nearly every block of weights."""
    if any(data[:32]):
        return False
    whole = len(data) // 8 * 8
    return not any(data[whole:]) and not np.frombuffer(data[:whole], np.uint64).any()


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """All of `data` at `offset`: a full disk shows itself as a short write first."""
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:] if done else data, offset + done)


def save_checkpoint(
    state_dict: Mapping[str, Tensor],
    path: str | Path,
    metadata: Mapping[str, str] | None = None,
    *,
    like: Checkpoint | None = None,
    overwrite: bool = False,
    shard_size: int | None = None,
) -> Path:
    """Write a state dict atomically; the format follows the suffix of `path` (none: a folder of shards).

    `metadata` is text kept in safetensors files. `like` gives the other content of a torch file or folder. Tied tensors
    stay tied where the format can hold ties. Raises MergeError where the output exists (and `overwrite` is not set) or
    cannot be written.
    """
    path = Path(path)
    tensors = {name: _dense(name, value) for name, value in state_dict.items()}
    first_with: dict[object, str] = {}
    slots: dict[str, Slot] = {}
    groups: dict[str, list[str]] = {}
    for name, spec in specs(tensors).items():
        storage = name if spec.tie is None else first_with.setdefault(spec.tie, name)
        slots[name] = Slot(spec.dtype, spec.shape, storage)
        groups.setdefault(storage, []).append(name)
    plan = plan_output(path, slots, like=like, metadata=metadata, shard_size=shard_size)
    with replacing(path, plan.size, folder=plan.folder, overwrite=overwrite) as partial:
        writer = Writer(plan, partial)
        try:
            for storage, names in groups.items():
                writer.write(names, 0, raw_bytes(tensors[storage].cpu()))
            writer.close()
        finally:
            writer.release()
    return path


def _dense(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise MergeError(f"{name} is a {type(value).__name__}, not a tensor")
    if value.layout != torch.strided or value.is_quantized or value.device.type == "meta":
        raise MergeError(f"{name} is a {value.layout} tensor on {value.device}: only dense ones can be saved")
    return value.detach()


def recipe_path(output: Path) -> Path:
    """Where the recipe of an output lies: beside it."""
    return output.with_name(output.name + ".recipe.json")
