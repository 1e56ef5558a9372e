"""What may be examined, and what it is called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from merge.checkpoint.open import Checkpoint
from merge.checkpoint.source import Source
from merge.errors import MergeError

BASE = "base"


def labels_for(sources: Sequence[Source], names: Sequence[str] | None = None) -> tuple[str, ...]:
    """Give names as given, else file stems; files of one stem are told apart by their paths.

    Raises MergeError where names are given and are not as many as the sources, or not unique.
    """
    if names is not None:
        if len(names) != len(sources):
            raise MergeError(f"{len(names)} names were given for {len(sources)} checkpoints")
        double = [name for name in names if list(names).count(name) > 1 or name == BASE]
        if double:
            raise MergeError(f"two checkpoints are called {double[0]!r}; give each a name of its own")
        return tuple(names)
    stems = [_stem(source, index) for index, source in enumerate(sources)]
    unclear = {stem for stem in stems if stems.count(stem) > 1 or stem == BASE}
    paths = [
        str(_path(source) or f"{stem} ({index + 1})")
        for index, (source, stem) in enumerate(zip(sources, stems, strict=True))
    ]
    labels = [path if stem in unclear else stem for path, stem in zip(paths, stems, strict=True)]
    return tuple(f"{label} ({index + 1})" if labels.count(label) > 1 else label for index, label in enumerate(labels))


def _path(source: Source) -> Path | None:
    if isinstance(source, Checkpoint):
        return source.path
    return Path(source) if isinstance(source, (str, Path)) else None


def _stem(source: Source, index: int) -> str:
    path = _path(source)
    if path is None:
        return f"input {index + 1}"
    return path.name if path.is_dir() else path.name.removesuffix(".index.json").rsplit(".", 1)[0]
