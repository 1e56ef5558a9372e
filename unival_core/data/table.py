"""Rows of tab-separated files by number, without reading the files into memory."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Sequence
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path

import numpy as np
from tqdm import tqdm

from unival_core.errors import UnivalError

_VERSION = 1
_CHUNK = 1 << 24  # bytes read at once when an index is built
_LONG = 1 << 30  # bytes of a file whose indexing shows progress
_TAB = b"\t"


class TsvTable:
    """The rows of one or several files, one after the other, as mappings from column names to cells.

    `columns` names what `selected_cols` picks from a line, by number from 0 and in that order; without it the line's
    own order. A row is found by its byte offset. Offsets are kept beside the file (`<name>.index.npy`), or in
    ~/.cache/unival-merge where that cannot be written; a file that changed its size or time is indexed anew. Safe to
    read from several threads. UnivalError for files that are missing or empty, and for rows that lack a column.

    >>> table = TsvTable("vqa_val.tsv", TASKS["vqa"].columns, (0, 5, 2, 3, 4))  # doctest: +SKIP
    >>> table[7]["question"]  # doctest: +SKIP
    'what colour is the dog?'
    """

    def __init__(
        self,
        paths: str | Path | Sequence[str | Path],
        columns: Sequence[str],
        selected_cols: Sequence[int] | None = None,
    ) -> None:
        self.paths = [Path(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
        self.columns = tuple(columns)
        self.selected_cols = tuple(range(len(self.columns)) if selected_cols is None else selected_cols)
        if len(self.columns) != len(self.selected_cols) or min(self.selected_cols, default=-1) < 0:
            raise UnivalError(f"columns {', '.join(self.columns)} need as many numbers, got {self.selected_cols}")
        if not self.paths:
            raise UnivalError("a table needs at least one file")
        self._offsets = [line_offsets(path) for path in self.paths]
        self._ends = list(accumulate(len(offsets) - 1 for offsets in self._offsets))
        self._bytes = [_mapped(path) for path in self.paths]

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, row: int) -> dict[str, str]:
        file, line = self._locate(row)
        start, end = self._offsets[file][line : line + 2].tolist()
        data = self._bytes[file][start:end]
        try:
            cells = data.rstrip(b"\r\n").decode("utf-8").split("\t")
            return {name: cells[number] for name, number in zip(self.columns, self.selected_cols, strict=True)}
        except UnicodeDecodeError as error:
            raise UnivalError(f"not UTF-8 ({error.reason} at byte {error.start})") from None
        except IndexError:
            wanted = max(self.selected_cols) + 1
            raise UnivalError(f"{data.count(_TAB) + 1} columns, at least {wanted} are wanted") from None

    def place(self, row: int) -> str:
        """Return the file and line of a row, as file:line."""
        file, line = self._locate(row)
        return f"{self.paths[file]}:{line + 1}"

    def folder(self, row: int) -> Path:
        """Return the folder of the file that holds a row."""
        return self.paths[self._locate(row)[0]].parent

    def _locate(self, row: int) -> tuple[int, int]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a table of {len(self)}")
        file = next(number for number, end in enumerate(self._ends) if row < end)
        return file, row - (self._ends[file - 1] if file else 0)


class SomeRows(TsvTable):
    """Rows of another table by their numbers there, in that order. IndexError for a row behind the last."""

    def __init__(self, table: TsvTable, rows: Sequence[int]) -> None:
        self.table, self.rows = table, rows
        self.paths, self.columns, self.selected_cols = table.paths, table.columns, table.selected_cols

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, str]:
        return self.table[self._whole(row)]

    def place(self, row: int) -> str:
        """Return the file and line of a row, as file:line."""
        return self.table.place(self._whole(row))

    def folder(self, row: int) -> Path:
        """Return the folder of the file that holds a row."""
        return self.table.folder(self._whole(row))

    def _whole(self, row: int) -> int:
        """Return the number that a row has in the other table."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a table of {len(self)}")
        return self.rows[row]


def line_offsets(path: Path) -> np.ndarray:
    """Say where each line of a file starts, and at the end the file's size: int64, from the kept index if it still
    fits."""
    if not path.is_file():
        raise UnivalError(f"{path}: no such file")
    stat = path.stat()
    if not stat.st_size:
        raise UnivalError(f"{path}: the file is empty")
    head = [_VERSION, stat.st_size, stat.st_mtime_ns]
    places = _index_places(path)
    for place in places:
        try:
            index = np.load(place, mmap_mode="r")
        except (OSError, ValueError, EOFError):
            continue
        if index.dtype == np.int64 and index.ndim == 1 and len(index) > 4 and index[:3].tolist() == head:
            return index[3:]
    index = np.concatenate((head, _scan(path, stat.st_size)))
    for place in places:
        if _save(place, index):
            break
    return index[3:]


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _index_places(path: Path) -> tuple[Path, Path]:
    """Name the place of the index beside the file, and the one where that is not possible."""
    absolute = path.absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unival-merge" / "index"
    digest = blake2b(str(absolute).encode(), digest_size=8).hexdigest()
    return absolute.with_name(f"{path.name}.index.npy"), cache / f"{path.name}-{digest}.npy"


def _scan(path: Path, size: int) -> np.ndarray:
    starts = [np.zeros(1, np.int64)]
    done = 0
    with (
        path.open("rb") as file,
        tqdm(desc=f"index {path.name}", total=size, unit="B", unit_scale=True, disable=size < _LONG) as bar,
    ):
        while chunk := file.read(_CHUNK):
            starts.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + done + 1)
            done += len(chunk)
            bar.update(len(chunk))
    offsets = np.concatenate(starts)
    return offsets if offsets[-1] == done else np.append(offsets, done)


def _save(place: Path, index: np.ndarray) -> bool:
    """Tell whether the index could be written, all or nothing."""
    partial = place.with_name(f"{place.name}.{os.getpid()}.partial")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.save(file, index)
        partial.replace(place)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
        return False
    return True
