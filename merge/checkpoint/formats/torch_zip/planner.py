"""Lay out the zip files that torch.save writes, anew or after one that was read."""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from merge.checkpoint.formats.format import DICTIONARY, Content, Layout, OutputFile, Specs, dictionary_in
from merge.checkpoint.formats.pickle.values import Global, Opaque, Persistent
from merge.checkpoint.formats.pickle.writer import dumps
from merge.checkpoint.formats.tensors import Spec, TensorEntry, contiguous_stride
from merge.checkpoint.formats.torch_zip.sections import stale
from merge.checkpoint.formats.torch_zip.tree import TensorLeaf
from merge.checkpoint.formats.zips import ALIGNMENT, lay_out
from merge.errors import MergeError


@dataclass(frozen=True)
class NewLeaf:
    """A tensor to be written. Leaves with one `storage` share their bytes; `like` is the old one in its place."""

    spec: Spec | TensorEntry
    storage: Hashable
    like: TensorLeaf | None = None


def plan(path: Path, specs: Specs, like: Content | None, metadata: Mapping[str, str] | None) -> Layout:
    """Lay out a torch file: after one that was read, its other content is kept and its dictionary is the metadata's.

    Storages are numbered in the order in which the tree meets them, as torch.save does. Raises MergeError for a value
    that has no place in such a file.
    """
    storages = {name: name if spec.tie is None else spec.tie for name, spec in specs.items()}
    new = {name: NewLeaf(spec, storages[name]) for name, spec in specs.items()}
    tree, archive, notes = new, path.stem, tuple[str, ...]()
    others: dict[Hashable, TensorEntry] = {}
    if like is not None:
        archive = like.kept.name
        tree, notes = _replaced(like, metadata or {}, new, others)
    order: dict[Hashable, tuple[str, int]] = {}
    try:
        [pickled] = dumps(tree, lambda value: _leaf_call(value, order) if isinstance(value, NewLeaf) else value)
    except (TypeError, RecursionError) as error:
        raise MergeError(f"the output cannot be written as a torch file: {error}") from error
    assert isinstance(pickled, bytes), "a torch file's tensors lie beside its pickle"
    members: dict[str, bytes | int] = {"data.pkl": pickled, ".format_version": b"1"}
    members |= {".storage_alignment": str(ALIGNMENT).encode(), "byteorder": b"little"}
    members |= {f"data/{key}": size for key, size in order.values()}
    members |= {"version": b"3\n"}
    zipped = lay_out({f"{archive}/{name}": content for name, content in members.items()})
    place = {storage: f"{archive}/data/{key}" for storage, (key, _) in order.items()}
    starts = {name: zipped.starts[place[storage]] for name, storage in storages.items()}
    passed = {storage: (entry, zipped.starts[place[storage]]) for storage, entry in others.items()}

    def closing(crcs: Mapping[Hashable, int]) -> list[tuple[int, bytes]]:
        written: Mapping[Hashable, Hashable] = {**storages}
        by_storage = {written.get(key, key): crc for key, crc in crcs.items()}
        return zipped.closing({place[storage]: crc for storage, crc in by_storage.items()})

    return Layout([OutputFile("", zipped.size, zipped.chunks, starts, passed, closing)], notes=notes)


def _replaced(
    like: Content, metadata: Mapping[str, str], new: Mapping[str, NewLeaf], others: dict[Hashable, TensorEntry]
) -> tuple[Any, tuple[str, ...]]:
    """The tree that was read with the section's weights replaced, and notes on what is left out since it is stale.

    Tensors that stay go to `others`; the dictionary of tokens is the one that the metadata gives to the output.
    """
    section = like.kept.sections.by_name[like.section]
    part, tree = section.part, like.kept.tree
    left_out, notes = stale(tree, section)
    tokens = dictionary_in(metadata) or like.dictionary
    done: dict[int, Any] = {}

    def copied(value: Any) -> Any:
        if isinstance(value, TensorLeaf):
            storage = ("other", value.entry.tie)
            others[storage] = value.entry
            return NewLeaf(value.entry, storage, value)
        if isinstance(value, Persistent):
            raise MergeError("the first input holds a storage outside of a tensor; save it again without")
        if type(value) is tuple:
            if id(value) not in done:
                done[id(value)] = tuple(copied(item) for item in value)
            return done[id(value)]
        if not isinstance(value, (dict, list, Opaque)):
            return value
        if id(value) not in done:
            done[id(value)] = Opaque(value.factory, (), value.new) if isinstance(value, Opaque) else type(value)()
            fill(value, done[id(value)])
        return done[id(value)]

    def fill(old: Any, into: Any) -> None:
        if isinstance(old, list):
            into.extend(copied(item) for item in old)
        elif isinstance(old, Opaque):
            into.args, into.state, into.has_state = copied(old.args), copied(old.state), old.has_state
            into.appended, into.items = copied(old.appended), copied(old.items)
        elif old is part:
            for name, item in old.items():  # in the old order; what is no tensor stays, names not in `new` go
                if not isinstance(item, TensorLeaf):
                    into[name] = copied(item)
                elif name in new:
                    into[name] = replace(new[name], like=item)
            into.update((name, leaf) for name, leaf in new.items() if name not in into)
        else:
            into.update((key, copied(item)) for key, item in old.items() if (id(old), key) not in left_out)
        if old is tree and tokens != like.dictionary:
            into[DICTIONARY] = tokens
        if isinstance(old, OrderedDict):
            vars(into).update(copied(vars(old)))

    try:
        result = copied(tree)
    except RecursionError as error:
        raise MergeError("the first input nests its other entries too deeply to be written again") from error
    return result, tuple(notes)


def _leaf_call(leaf: NewLeaf, order: dict[Hashable, tuple[str, int]]) -> Opaque:
    """The call by which torch makes this tensor, its storage numbered in `order`."""
    element, shape, nbytes = leaf.spec.element, leaf.spec.shape, leaf.spec.nbytes
    if element.bits < 8:
        raise MergeError(f"torch files cannot hold {element}: write a .safetensors file")
    key, _ = order.setdefault(leaf.storage, (str(len(order)), nbytes))
    typed = bool(element.storage)
    kind = Global("torch", element.storage) if typed else Global("torch.storage", "UntypedStorage")
    storage = Persistent(("storage", kind, key, "cpu", nbytes // element.itemsize if typed else nbytes))
    grad = leaf.like is not None and leaf.like.requires_grad
    is_parameter = leaf.like is not None and leaf.like.parameter
    hooks: OrderedDict[Any, Any] = OrderedDict()
    args = (storage, 0, shape, contiguous_stride(shape), grad and not is_parameter, hooks)
    if typed:
        tensor = Opaque(Global("torch._utils", "_rebuild_tensor_v2"), args)
    else:
        kind = Global("torch", element.name)
        tensor = Opaque(Global("torch._utils", "_rebuild_tensor_v3"), (*args, kind))
    made = tensor
    if leaf.like is not None and leaf.like.state is not None:
        factory = Global("torch._utils", "_rebuild_parameter_with_state")
        made = Opaque(factory, (tensor, grad, OrderedDict(), leaf.like.state))
    elif is_parameter:
        made = Opaque(Global("torch._utils", "_rebuild_parameter"), (tensor, grad, OrderedDict()))
    if leaf.like is None or leaf.like.kind is None:
        return made
    kind, state = leaf.like.kind
    return Opaque(Global("torch._tensor", "_rebuild_from_type_v2"), (made.factory, kind, made.args, state))
