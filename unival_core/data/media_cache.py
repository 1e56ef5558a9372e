"""Decoded media, kept for the next time."""

from __future__ import annotations

import os
import threading
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor


class Medium(NamedTuple):
    """A decoded medium as exact small integers (see `Example`), and the (width, height) its image had in the file."""

    values: Tensor
    size: tuple[int, int]


class MediaCache:
    """Media by their content, up to `memory` bytes in RAM and `disk` bytes in `folder`.

    What is in stays in: a sweep goes through the same rows again and again, and throwing out the oldest would throw out
    each one just before it is wanted. Tasks and rows that show the same image share it. Safe to use from several
    threads; several processes may share a folder, and a broken file in it is only missing.
    """

    def __init__(self, memory: int = 1 << 30, folder: str | Path | None = None, disk: int = 1 << 36) -> None:
        self.memory, self.disk = memory, disk
        self.folder = None if folder is None else Path(folder)
        self.used = 0
        self.written = 0
        self._kept: dict[str, Medium] = {}
        self._lock = threading.Lock()
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.written = sum(file.stat().st_size for file in self.folder.glob("*.npz"))

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: str) -> Medium | None:
        """Look up what is kept under a key; None for nothing."""
        medium = self._kept.get(key)
        return medium if medium is not None or self.folder is None else _read(self.folder / f"{_digest(key)}.npz")

    def put(self, key: str, medium: Medium) -> bool:
        """Keep a medium if there is room; tell whether it is in RAM now."""
        size = medium.values.nbytes
        path = None if self.folder is None else self.folder / f"{_digest(key)}.npz"
        with self._lock:
            if key in self._kept:
                return True
            if self.used + size <= self.memory:
                self._kept[key] = medium
                self.used += size
                return True
            if path is None or path.exists() or self.written + size > self.disk:
                return False
            self.written += size
        _write(path, medium)
        return False


def _read(path: Path) -> Medium | None:
    try:
        with np.load(path) as stored:
            width, height = stored["size"].tolist()
            return Medium(torch.from_numpy(stored["values"]), (width, height))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None


def _write(path: Path, medium: Medium) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    with partial.open("wb") as file:
        np.savez(file, values=medium.values.numpy(), size=np.array(medium.size))
    partial.replace(path)


def _digest(key: str) -> str:
    return blake2b(key.encode(), digest_size=16).hexdigest()
