"""A progress bar over the bytes that a command reads."""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from merge.recipe.recipe import Input


class Bar:
    """A bar on a terminal; called with the bytes that were read since the last call."""

    def __init__(self, shown: Any):
        """Take tqdm's bar."""
        self._shown = shown

    def __call__(self, size: int) -> None:
        self._shown.update(size)

    def stage(self, label: str, size: int) -> None:
        """Begin again: with what is done now, and the bytes to read for it."""
        self._shown.reset(size)
        self._shown.set_description(label)


@contextmanager
def progress_bar(sources: Sequence[Input], label: str) -> Generator[Bar | None]:
    """Give a progress bar over the inputs' bytes on a terminal, None elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    total = sum(_size(source) for source in sources)
    with tqdm(total=total, unit="B", unit_scale=True, desc=label) as bar:
        yield Bar(bar)


def _size(source: Input) -> int:
    """An input's bytes: of the result of a recipe about those of its first input."""
    from merge.checkpoint.open import open_checkpoint

    while source.recipe is not None:
        source = source.recipe.sources[0]
    return open_checkpoint(source.path, source.section).nbytes
