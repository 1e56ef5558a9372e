"""Write checkpoints: an output is laid out byte by byte before its first tensor is known, then filled in any order."""

# What users give is checked, whatever its type is said to be.
# pyright: reportUnnecessaryIsInstance=false, reportUnnecessaryComparison=false

from __future__ import annotations

import contextlib
import os
import shutil
import zlib
from collections.abc import Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from merge.checkpoint.atomic import replacing
from merge.checkpoint.folder import SHARD
from merge.checkpoint.formats import FORMATS, format_of
from merge.checkpoint.formats.format import Glimpse, Layout, OutputFile, Specs, path_of
from merge.checkpoint.formats.tensors import TensorEntry, raw_bytes
from merge.checkpoint.open import Checkpoint, open_checkpoint, specs
from merge.checkpoint.parts import accounts, lay_out_parts
from merge.checkpoint.source import Source, dense, opened
from merge.errors import MergeError

SHARD_SIZE = 5_000_000_000  # bytes, of a folder where no size is asked for
_KEPT_OPEN = 256  # files; of a folder with more each is opened for every block
_WRITING = os.O_WRONLY | os.O_CREAT


def lay_out(
    path: Path,
    tensors: Specs,
    *,
    like: Checkpoint | None = None,
    others: Sequence[Checkpoint] = (),
    metadata: Mapping[str, str] | None = None,
    shard_size: int | None = None,
    sidecars: Mapping[str, bytes | Path | None] | None = None,
) -> Layout:
    """Lay out an output whose format follows its suffix; without one it is a folder: of parts, or of safetensors.

    `like` is the checkpoint whose other content is kept: a torch file's other entries, a folder's other files but for
    `sidecars`, which are given or (None) left out. Notes say what is not kept, also of `others`.
    Raises MergeError for a suffix that nothing is written as and for content that the format cannot hold.
    """
    written = [format for format in FORMATS.values() if format.planner is not None]
    format = next((format for format in FORMATS.values() if format.named(path)), None)
    if format not in (None, *written) or (format is None and path.suffix and not path.is_dir()):
        problem = f"unknown suffix {path.suffix!r}" if format is None else f"{format.label} files are only read"
        suffixes = ", ".join(suffix for format in written for suffix in format.suffixes)
        raise MergeError(f"{path}: {problem}; known are {suffixes}, or none for a folder")
    sharded = [format for format in written if format.folder_planner is not None]
    folder = format is None or (shard_size is not None and format in sharded)
    edits = (sidecars or {}) if folder else {}
    copied, notes = accounts([like, *others], folder, edits) if like is not None else ({}, [])
    copied |= {name: file for name, file in edits.items() if isinstance(file, Path)}
    texts = [OutputFile(name, len(text), [(0, text)]) for name, text in edits.items() if isinstance(text, bytes)]
    if folder and like is not None and like.parts:
        if shard_size is not None:
            raise MergeError(f"{path}: the parts of {like.path} keep their shards; leave shard_size=... out")
        layout = lay_out_parts(tensors, like.parts)
    elif folder:
        planner = (format or sharded[0]).folder_planner
        assert planner is not None
        layout = planner(tensors, metadata, shard_size or SHARD_SIZE, _stem(like))
    elif shard_size is not None:
        labels = ", ".join(format.label for format in sharded)
        raise MergeError(f"{path}: only {labels} are written in shards; name a folder or leave shard_size=... out")
    else:
        # Of shards and parts nothing but tensors and metadata was read, so there is nothing else to keep.
        assert format is not None
        same = like is not None and like.format is format and len(like.files) == 1 and not like.parts
        layout = format.plan(path, tensors, like.content if like is not None and same else None, metadata)
        layout = replace(layout, like=same)
    return replace(
        layout,
        files=[*layout.files, *texts],
        copied={**copied, **layout.copied},
        notes=(*layout.notes, *notes),
        card=folder,
    )


def _stem(like: Checkpoint | None) -> str:
    """How the weights of a folder are called: as in the input, by the names that loaders look for."""
    if like is None or not like.path.is_dir() or like.format.index:
        return "model"
    name = like.files[0].name
    shard = SHARD.fullmatch(name)
    stem = shard["stem"] + (shard["variant"] or "") if shard else name.removesuffix(like.files[0].suffix)
    named = like.format.folder_planner is not None or stem in ("diffusion_pytorch_model", "adapter_model")
    return stem if named else "model"


def save_checkpoint(
    source: Source,
    output: str | Path,
    *,
    overwrite: bool = False,
    section: str = "auto",
    like: str | Path | Checkpoint | None = None,
    metadata: Mapping[str, str] | None = None,
    shard_size: int | None = None,
) -> Path:
    """Write a checkpoint's tensors atomically; the format follows the suffix of `output` (none: a folder of shards).

    `section` is the part that a training file's path means. `metadata` is text kept in safetensors files. `like` gives
    the other content of a torch file or folder. Tied tensors stay tied where the format can hold ties. Raises
    MergeError where the output exists (and `overwrite` is not set) or cannot be written.
    """
    output = path_of(output, "the output")
    if not isinstance(like, (Checkpoint, type(None))):
        like = open_checkpoint(like, section)
    if metadata is not None and not (
        isinstance(metadata, Mapping) and all(isinstance(text, str) for item in metadata.items() for text in item)
    ):
        raise MergeError(f"metadata={str(metadata)[:80]}: must be texts by name")
    if shard_size is not None and (type(shard_size) is not int or shard_size < 1):
        raise MergeError(f"shard_size={shard_size!r}: must be a number of bytes")
    tensors = {name: dense(value, name) for name, value in opened(source, section).items()}
    described = specs(tensors)
    tied: dict[Hashable, list[str]] = {}
    for name, spec in described.items():
        tied.setdefault(spec.tie or name, []).append(name)
    layout = lay_out(output, described, like=like, metadata=metadata, shard_size=shard_size)
    with replacing(output, layout.size, folder=layout.folder, overwrite=overwrite, copied=layout.copied) as partial:
        writer = Writer(layout, partial)
        try:
            for names in tied.values():
                writer.write(names, 0, raw_bytes(tensors[names[0]].cpu()))
            writer.close()
        finally:
            writer.release()
    return output


def suffix_like(path: Path) -> str:
    """Give the suffix for files made from one: its own format's where that keeps ties, else the first format's."""
    format = format_of(Glimpse.of(path)) if path.is_file() else None
    if format is None or not format.keeps_ties or format.planner is None:
        format = next(iter(FORMATS.values()))
    return next(
        (path.name[-len(end) :] for end in format.suffixes if path.name.lower().endswith(end)), format.suffixes[0]
    )


# -- writing ---------------------------------------------------------------------------------------------------------


class Writer:
    """Writes tensors of one output at their planned places; safe to call from several threads for different tensors."""

    def __init__(self, layout: Layout, partial: Path):
        self._layout = layout
        self._places: dict[Hashable, list[tuple[int, int]]] = {}
        self._crcs: list[dict[Hashable, int]] = [{} for _ in layout.files]
        self._sealed = [number for number, file in enumerate(layout.files) if file.closing is not None]
        self._paths = [partial / file.name if layout.folder else partial for file in layout.files]
        self._descriptors: dict[int, int] = {}
        for number, file in enumerate(layout.files):
            self._paths[number].parent.mkdir(parents=True, exist_ok=True)
            if len(layout.files) <= _KEPT_OPEN:
                self._descriptors[number] = os.open(self._paths[number], _WRITING, 0o666)
            with self._opened(number) as descriptor:
                os.ftruncate(descriptor, file.size)
                for offset, chunk in file.chunks:
                    _write_at(descriptor, chunk, offset)
            for name, start in file.starts.items():
                self._places.setdefault(name, []).append((number, start))
            for key, (entry, start) in file.passed.items():
                self._places[key] = [(number, start)]
                for offset, block in _blocks_of(entry):
                    self.write((key,), offset, block)
        for name, path in layout.copied.items():
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

    def write(self, names: Sequence[Hashable], offset: int, data: memoryview) -> None:
        """Write bytes of a tensor, `offset` into it, under all its names. Blocks of a tensor come in order."""
        places: Iterable[tuple[int, int]] = self._places.get(names[0], ())
        if len(names) > 1:
            places = dict.fromkeys(place for name in names for place in self._places.get(name, ()))
        for number, start in () if _is_zero(data) else places:  # new files read as zeros: a hole takes no disk
            if number in self._descriptors:
                _write_at(self._descriptors[number], data, start + offset)
                continue
            with self._opened(number) as descriptor:
                _write_at(descriptor, data, start + offset)
        for number in self._sealed:
            crcs = self._crcs[number]
            crcs.update(dict.fromkeys(names, zlib.crc32(data, crcs.get(names[0], 0))))

    def meet(self, first: Hashable, second: Hashable, size: int) -> bool:
        """Whether one tensor, of `size` bytes, ends where the other begins, so that both may be written at once."""
        ends = [(number, start + size) for number, start in self._places.get(first, ())]
        return not self._sealed and ends == self._places.get(second, [])

    def close(self) -> None:
        """Write what a format wants last."""
        for number, file in enumerate(self._layout.files):
            for offset, chunk in file.closing(self._crcs[number]) if file.closing else ():
                with self._opened(number) as descriptor:
                    _write_at(descriptor, chunk, offset)

    def fill_in(self, old: bytes, new: bytes) -> None:
        """Replace text in the files' headers by other text of the same length, known only at the end."""
        for number, file in enumerate(self._layout.files):
            for offset, chunk in file.chunks:
                at = chunk.find(old) if old else -1
                if at >= 0:
                    with self._opened(number) as descriptor:
                        _write_at(descriptor, new, offset + at)

    def release(self) -> None:
        """Close the files, also after an error."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])


def _blocks_of(entry: TensorEntry) -> Iterator[tuple[int, memoryview]]:
    """A stored tensor's row-major bytes in blocks, with the offset of each."""
    if entry.stride is not None:
        yield 0, raw_bytes(entry.loaded())
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
    import numpy as np

    whole = len(data) // 8 * 8
    return not any(data[whole:]) and not np.frombuffer(data[:whole], np.uint64).any()


def _write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """All of `data` at `offset`: a full disk shows itself as a short write first."""
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:] if done else data, offset + done)
