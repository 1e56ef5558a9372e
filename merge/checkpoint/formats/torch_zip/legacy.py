"""Torch files from before torch 1.6: pickles one after another, then the storages' bytes (torch/serialization.py).

A magic number, the protocol's version, what the machine was like; the object; the storages' keys in the order in which
they follow, each as its number of elements (8 bytes) and its elements.
"""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

from dataclasses import replace
from typing import Any

from merge.checkpoint.formats.tensors import CheckedFile
from merge.checkpoint.formats.torch_zip.tree import Leaves, read_tree
from merge.errors import MergeError

MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001


def read_legacy(file: CheckedFile) -> Any:
    """Give the tree of such a file. Raises MergeError naming the file for broken ones and for other pickles."""
    path, leaves = file.path, Leaves(file)
    with path.open("rb") as stream:
        if read_tree(path, stream, leaves) != MAGIC:
            raise MergeError(
                f"{path}: a Python pickle that torch.save did not write; if you trust it, load it with the program "
                "that wrote it and save its tensors with torch.save"
            )
        version, machine = (read_tree(path, stream, leaves) for _ in range(2))
        if version != VERSION:
            raise MergeError(f"{path}: has version {str(version)[:20]} of torch's old files, read is {VERSION}")
        if isinstance(machine, dict) and machine.get("little_endian") is False:
            raise MergeError(f"{path}: written on a big-endian machine; save it again on a little-endian one")
        tree, keys = (read_tree(path, stream, leaves) for _ in range(2))
        position = stream.tell()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len({*keys}) != len(keys):
        raise MergeError(f"{path}: its list of storages is broken")
    starts: dict[str, int] = {}
    for key in keys:
        numel, itemsize = leaves.storages.get(key, (-1, 0))
        held = int.from_bytes(file.read(position, 8), "little")
        if numel != held:
            raise MergeError(f"{path}: storage {key[:40]} has {held} elements, the pickle says {max(numel, 0)}")
        starts[key] = position + 8
        position += 8 + numel * itemsize
        if position > file.size:
            raise MergeError(f"{path}: truncated: storage {key[:40]} ends at byte {position} of {file.size}")
    lost = [key for key in leaves.storages if key not in starts]
    if lost or position != file.size:
        problem = (
            f"storage {lost[0][:40]} is missing" if lost else f"{file.size - position} bytes follow the last storage"
        )
        raise MergeError(f"{path}: not a whole torch file of {file.size} bytes: {problem}")
    for leaf in leaves.made:
        if leaf.entry.file is file:
            _, key = leaf.entry.storage  # type: ignore[misc]
            leaf.entry = replace(leaf.entry, offset=starts[key] + leaf.entry.offset)
    return tree
