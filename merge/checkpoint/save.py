"""Plan and write an output checkpoint: its layout is known, byte by byte, before the first tensor is computed."""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merge.checkpoint.atomic import replacing
from merge.checkpoint.formats import npz, t5x
from merge.checkpoint.formats.pickle_data import Opaque, Persistent
from merge.checkpoint.formats.safetensors_file import encode_header
from merge.checkpoint.formats.tensors import TensorEntry, raw_bytes
from merge.checkpoint.formats.torch_zip import NewLeaf, TensorLeaf, plan_zip
from merge.checkpoint.open import AVERAGED, SECTIONS, SUFFIXES, TORCH_SUFFIXES, Checkpoint, lookup, specs
from merge.checkpoint.output import FilePlan, OutputPlan, Slot, Writer
from merge.errors import MergeError

_NOT_COPIED = (".index.json", ".recipe.json")
SHARD_SIZE = 5_000_000_000


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
