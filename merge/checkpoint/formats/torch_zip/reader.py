"""Torch files: the zip files that torch.save writes, with a pickle that names storages and a stored record for each.

What was written before torch 1.6 is read by `legacy`.
"""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge.checkpoint.formats.format import DICTIONARY, Content
from merge.checkpoint.formats.pickle.values import PickleBroken
from merge.checkpoint.formats.tensors import CheckedFile
from merge.checkpoint.formats.torch_zip.legacy import read_legacy
from merge.checkpoint.formats.torch_zip.sections import Sections, sections_of
from merge.checkpoint.formats.torch_zip.tree import Leaves, read_tree
from merge.errors import MergeError

_PICKLE = "data.pkl"


@dataclass(frozen=True)
class Archive:
    """The name of the folder inside the zip file, the whole content, and the weights in it."""

    name: str
    tree: Any
    sections: Sections


def read(path: Path) -> Content:
    """Read the pickle of a torch file; no storage is touched and nothing in the file is run.

    Raises MergeError naming the file for broken files and refused globals.
    """
    file = CheckedFile(path)
    start = file.read(0, min(file.size, 4))
    if start.startswith(b"\x80"):
        return content_of(path, path.name.partition(".")[0] or "archive", read_legacy(file))
    if not start.startswith(b"PK"):
        raise MergeError(f"{path}: not a torch zip file ({file.size} bytes, beginning with {start!r})")
    records = Records(file)
    tree = read_tree(path, records.pickled, Leaves(file, records.place))
    return content_of(path, records.prefix.rstrip("/"), tree)


def content_of(path: Path, name: str, tree: Any) -> Content:
    """Give what a tree means. Raises MergeError where there are no weights in it."""
    sections = sections_of(path, tree)
    dictionary = tree.get(DICTIONARY) if isinstance(tree, dict) else None
    kept = Archive(name, tree, sections)
    return Content(
        path, sections, None, sections.default, "", dictionary, sections.others(), kept, advice=sections.advice
    )


class Records:
    """The records of a torch zip file, or of one inside a file: its pickle, and places by storages' keys.

    Raises MergeError naming the file for what is not a whole torch zip file.
    """

    def __init__(self, file: CheckedFile, begin: int = 0, size: int | None = None):
        self.file, self.begin = file, begin
        self.size = file.size if size is None else size
        path = file.path
        try:
            window = file.path if size is None else io.BytesIO(file.read(begin, size))
            with zipfile.ZipFile(window) as archive:
                infos = archive.infolist()
        except Exception as error:  # zipfile raises a dozen kinds for broken bytes
            raise MergeError(f"{path}: not a whole torch zip file of {self.size} bytes: {str(error)[:200]}") from error
        twice = [name for name, count in Counter(info.orig_filename for info in infos).items() if count > 1]
        if twice:
            raise MergeError(f"{path}: has two entries named {twice[0][:80]!r}; programs differ in which one they read")
        members = {info.orig_filename: info for info in infos}
        pickles = [name for name in members if name.endswith(_PICKLE) and name.count("/") == 1]
        if len(pickles) != 1:
            raise MergeError(f"{path}: a zip file without a torch checkpoint in it (no data.pkl)")
        self.prefix = pickles[0][: -len(_PICKLE)]
        data = f"{self.prefix}data/"
        self.members = {name[len(data) :]: info for name, info in members.items() if name.startswith(data)}
        self.places: dict[str, tuple[int, int]] = {}
        self.total = 0
        try:
            order = members.get(f"{self.prefix}byteorder")
            if order is not None and self.content(order) != b"little":
                raise MergeError(f"{path}: written on a big-endian machine; save it again on a little-endian one")
            self.pickled = self.content(members[pickles[0]])
        except PickleBroken as error:
            raise MergeError(f"{path}: not a whole torch zip file of {self.size} bytes: {error}") from error

    def content(self, info: zipfile.ZipInfo) -> bytes:
        """Give a record's bytes. Raises PickleBroken for damaged ones."""
        start = self.start(info, info.orig_filename[:80])
        data = self.file.read(start, info.file_size)
        if info.CRC not in (0, zlib.crc32(data)):
            raise PickleBroken(f"{info.orig_filename[:80]} is damaged: its checksum is another one")
        return data

    def place(self, key: str) -> tuple[int, int]:
        """Give where a storage's bytes begin in the file, and how many they are. Raises PickleBroken."""
        if key not in self.places:
            info = self.members.get(key)
            if info is None:
                raise PickleBroken(f"storage {key[:40]} is missing from the archive")
            start = self.start(info, f"storage {key[:40]}")
            self.total += info.file_size
            if self.total > self.size:
                raise PickleBroken("storages lie over each other")
            self.file.promise(start, info.file_size, info.CRC, info.orig_filename)
            self.places[key] = start, info.file_size
        return self.places[key]

    def start(self, info: zipfile.ZipInfo, name: str) -> int:
        """Where a record's bytes begin. Raises PickleBroken where header, directory and file do not hold together."""
        if info.compress_type != zipfile.ZIP_STORED:
            raise PickleBroken(f"{name} is compressed; save the file again with torch.save")
        start = self.begin + info.header_offset + self.local_header(info, name)
        if start + info.file_size > self.begin + self.size:
            raise PickleBroken(f"{name} ends beyond the file's {self.size} bytes")
        if self.file.read(start + info.file_size, 2) != b"PK":  # what comes next in a zip file, whatever it is
            raise PickleBroken(f"{name} does not end where the archive's directory says")
        return start

    def local_header(self, info: zipfile.ZipInfo, called: str) -> int:
        """Length of a record's local header, which must agree with the directory and hold together."""
        try:
            fixed = self.file.read(self.begin + info.header_offset, 30)
            name, extra = struct.unpack("<HH", fixed[26:30])
            rest = self.file.read(self.begin + info.header_offset + 30, name + extra)
        except (MergeError, OSError) as error:
            raise PickleBroken(f"{called} has its header beyond the end of the file") from error
        fields, at = rest[name:], 0
        while at + 4 <= len(fields):
            at += 4 + int.from_bytes(fields[at + 2 : at + 4], "little")
        if fixed[:4] != b"PK\x03\x04" or rest[:name] != info.orig_filename.encode() or at != len(fields):
            raise PickleBroken(f"{called} has a local header that does not fit the archive's directory")
        return 30 + name + extra
