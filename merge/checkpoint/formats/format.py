"""What a format of checkpoints is, what its reader finds in a file, and what its planner lays out."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Container, Generator, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from merge.checkpoint.formats.tensors import Spec, TensorEntry
from merge.errors import MergeError

SIGNATURE = 512  # bytes at a file's beginning that tell its format
_ZIP = b"PK"
_ZIP_END = 1 << 16  # bytes at a zip file's end where its last members are named
WHOLE = "."  # the section that is the file itself
DICTIONARY = "global_dict_indices"  # an entry that gives every token's row of the embeddings

Specs = Mapping[str, Spec | TensorEntry]


def path_of(path: object, what: str) -> Path:
    """Give what is given as a path. Raises MergeError for what is none."""
    if not isinstance(path, (str, Path)):
        raise MergeError(f"{what} must be a path, not a {type(path).__name__}")
    return Path(path)


def dictionary_in(metadata: Mapping[str, str] | None) -> Any:
    """Give every token's row of the embeddings as the metadata notes it, None where it does not."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads((metadata or {}).get(DICTIONARY, "null"))
    return None


def without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Give a JSON object as a dictionary, for `object_pairs_hook`. Raises ValueError where a key comes twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in found if keys.count(key) > 1)[:80]!r} comes twice")
    return found


def name_problem(names: Iterable[str]) -> None:
    """Raise ValueError for names that no file can hold: halves of characters (lone surrogates)."""
    try:
        "".join(names).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"a name holds {error.object[error.start : error.end]!a}, half a character") from error


def noted_ties(metadata: Mapping[str, str] | None, names: Container[str]) -> dict[str, str]:
    """Names that are tied to one of `names` and left out, as `safetensors.torch.save_model` notes them in metadata.

    Other notes may happen to be names of tensors ("format": "pt"): see `is_tie`.
    """
    items = (metadata or {}).items()
    return {name: kept for name, kept in items if kept in names and name not in names and is_tie(name, kept)}


def is_tie(name: str, kept: str) -> bool:
    """Tell whether a note in metadata may mean two tied tensors: names of modules' tensors, or of one last part."""
    return ("." in name and "." in kept) or name.rpartition(".")[2] == kept.rpartition(".")[2]


@dataclass(frozen=True)
class Glimpse:
    """What tells the kind of a file: its name, its first bytes and, of a zip file, the end, which names members."""

    name: str
    start: bytes
    end: bytes = b""

    @classmethod
    def of(cls, path: Path) -> Glimpse:
        """Look at a file. Raises OSError."""
        with path.open("rb") as file:
            start = file.read(SIGNATURE)
            if not start.startswith(_ZIP):
                return cls(path.name, start)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _ZIP_END))
            return cls(path.name, start, file.read(_ZIP_END))

    def fits(self, signature: bytes, inside: bytes = b"") -> bool:
        """Tell whether the first bytes match one regular expression or another is found at a zip file's end."""
        if signature and re.match(signature, self.start, re.DOTALL):
            return True
        return bool(inside) and re.search(inside, self.end, re.DOTALL) is not None


@dataclass(frozen=True)
class Content:
    """What a file (or a folder that is one checkpoint) holds.

    Attributes:
        path: the file or folder.
        sections: by name (`"."` for the file itself) where every tensor lies, in the order of the file. A section may
            be read only when it is looked up: the arrays of one that nobody wants may be absent.
        metadata: the file's own text; None where it has none.
        default: the section that "auto" takes where there are several; empty: one must be chosen.
        section: the section that was chosen.
        dictionary: every token's row of the embeddings, where the file notes it elsewhere than in its metadata.
        others: what lies beside the tensors, by name, each in a few words.
        kept: whatever else the format's own planner needs to write such a file again.
        advice: what the file's own program does with its sections, where one must be chosen.
    """

    path: Path
    sections: Mapping[str, Mapping[str, TensorEntry]]
    metadata: Mapping[str, str] | None = None
    default: str = ""
    section: str = ""
    dictionary: Any = None
    others: Mapping[str, str] = field(default_factory=dict[str, str])
    kept: Any = None
    advice: str = ""


@dataclass(frozen=True)
class OutputFile:
    """One file to be written: its size, its fixed bytes by offset, where the bytes of each named tensor begin.

    `passed` are tensors of the input's other content and where they go: they are copied, block by block.
    `closing`, where a format wants it, takes the CRC-32 of what was written, by name, and gives the last bytes.
    """

    name: str
    size: int
    chunks: Sequence[tuple[int, bytes]]
    starts: Mapping[str, int] = field(default_factory=dict[str, int])
    passed: Mapping[Hashable, tuple[TensorEntry, int]] = field(default_factory=dict[Hashable, tuple[TensorEntry, int]])
    closing: Callable[[Mapping[Hashable, int]], list[tuple[int, bytes]]] | None = None


@dataclass(frozen=True)
class Layout:
    """An output, byte by byte, before its tensors are known.

    Attributes:
        files: one file named "", or those of a folder by their relative names.
        folder: whether the output is a folder.
        notes: what was left out, for the user.
        copied: files taken over as they are, by their relative names.
        like: whether it has the entries of the file that was read, beside the weights.
        card: whether a folder gets a model card, which is written when the digests are known.
    """

    files: Sequence[OutputFile]
    folder: bool = False
    notes: tuple[str, ...] = ()
    copied: Mapping[str, Path] = field(default_factory=dict[str, Path])
    card: bool = False
    like: bool = False

    @property
    def names(self) -> list[str]:
        """The relative names of all files."""
        return sorted([*(file.name for file in self.files), *self.copied])

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files) + sum(path.stat().st_size for path in self.copied.values())


Reader = Callable[[Path], Content]
Planner = Callable[[Path, Specs, Content | None, Mapping[str, str] | None], Layout]


@dataclass(frozen=True)
class Format:
    """A format of checkpoints.

    Attributes:
        label: its name in what is printed.
        suffixes: of its files, the usual one first; the name of an output chooses its format by them.
        signature: a regular expression that the first bytes (at most `SIGNATURE`) of such a file match.
        inside: for zip files, another that is found among the names of the members.
        reader: `reader(path) -> Content`. Headers are read and checked; raises MergeError naming the file.
        doc: for docs/formats.md: what names the tensors have, what is lost.
        planner: `planner(path, specs, like, metadata) -> Layout`, for tensors in this order, names with one `tie` being
            one tensor. `like` is what was read of the same format, to be kept but for its section's tensors; `metadata`
            is text. None: the format is only read.
        folder_planner: `folder_planner(specs, metadata, shard_size, stem) -> Layout` for shards under an index, where
            the format is written so; the files' names begin with the stem.
        index: for a format that is a folder: the file in it that has the signature.
        keeps_ties: tied tensors are written once.
        checksums: files have checksums of their tensors, which reading and writing compute.
        extra: the extra of this package that the reader or the planner needs.
    """

    label: str
    suffixes: tuple[str, ...]
    signature: bytes
    reader: Reader
    doc: str
    planner: Planner | None = None
    folder_planner: Callable[[Specs, Mapping[str, str] | None, int, str], Layout] | None = None
    index: str = ""
    keeps_ties: bool = False
    checksums: bool = False
    extra: str = ""
    inside: bytes = b""

    def matches(self, look: Glimpse) -> bool:
        """Tell whether a file is of this format, as far as that tells."""
        return look.fits(self.signature, self.inside)

    def named(self, path: Path) -> bool:
        """Tell whether a file's name has a suffix of this format, in whatever case."""
        return path.name.lower().endswith(self.suffixes)

    def read(self, path: Path) -> Content:
        """Call the reader. Raises MergeError, also where the extra is not installed."""
        with self._installed(path):
            return self.reader(path)

    def plan(self, path: Path, specs: Specs, like: Content | None, metadata: Mapping[str, str] | None) -> Layout:
        """Call the planner. Raises MergeError, also where the extra is not installed."""
        assert self.planner is not None, self.label
        with self._installed(path):
            return self.planner(path, specs, like, metadata)

    @contextlib.contextmanager
    def _installed(self, path: Path) -> Generator[None]:
        try:
            yield
        except ImportError as error:
            extra = f": pip install 'unival-merge[{self.extra}]'" if self.extra else ""
            raise MergeError(f"{path}: {self.label} checkpoints need {error.name}{extra}") from error
