"""Digests of tensors: the identity of a checkpoint's weights, whatever file they lie in.

xxh3-128 tells files apart; it does not protect against somebody who wants two files to look alike. SHA-256 does.
"""

from __future__ import annotations

import hashlib

import xxhash

from merge.checkpoint.formats.elements import Element, element_of
from merge.checkpoint.formats.tensors import raw_bytes
from merge.checkpoint.source import Source, opened
from merge.errors import MergeError

ALGORITHMS = {"xxh3_128": xxhash.xxh3_128, "sha256": hashlib.sha256}
DEFAULT = "xxh3_128"


class Digest:
    """Collects the tensors of one checkpoint, in any order, one hash a tensor."""

    def __init__(self, algorithm: str = DEFAULT):
        if algorithm not in ALGORITHMS:
            raise MergeError(f"unknown digest {algorithm!r}; known are {', '.join(ALGORITHMS)}")
        self.algorithm = algorithm
        self._tensors: dict[str, str] = {}

    def start(self):
        """A fresh hash for one tensor's row-major bytes."""
        return ALGORITHMS[self.algorithm]()

    def add(self, name: str, element: Element, shape: tuple[int, ...], content: str) -> None:
        """File one tensor's finished hash under its name."""
        self._tensors[name] = f"{name}\0torch.{element}\0{list(shape)}\0{content}"

    def text(self) -> str:
        """`"<algorithm>:<hex>"` over all tensors in the order of their names."""
        whole = self.start()
        for name in sorted(self._tensors):
            whole.update(self._tensors[name].encode() + b"\n")
        return f"{self.algorithm}:{whole.hexdigest()}"


def digest(source: Source, algorithm: str = DEFAULT, *, section: str = "auto") -> str:
    """Give the digest of a checkpoint's tensors: the same for a file, its copy and the state dict.

    `section` is the part of a training file that a path means. Raises MergeError for what is no checkpoint.

    >>> import torch
    >>> digest({"w": torch.zeros(2)}) == digest({"w": torch.zeros(2)})
    True
    """
    whole = Digest(algorithm)
    for name, value in opened(source, section).items():
        content = whole.start()
        content.update(raw_bytes(value.detach().cpu()))
        whole.add(name, element_of(value.dtype), tuple(value.shape), content.hexdigest())
    return whole.text()
