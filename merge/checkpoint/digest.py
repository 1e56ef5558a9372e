"""Digests of tensors: the identity of a checkpoint's weights, whatever file they lie in.

xxh3-128 tells files apart; it does not protect against somebody who wants two files to look alike. SHA-256 does.
"""

from __future__ import annotations

import hashlib

import xxhash

from merge.checkpoint.formats.elements import Element
from merge.checkpoint.formats.tensors import TensorEntry, raw_bytes
from merge.checkpoint.open import specs
from merge.checkpoint.source import Source, opened
from merge.errors import MergeError

ALGORITHMS = {"xxh3_128": xxhash.xxh3_128, "sha256": hashlib.sha256}
DEFAULT = "xxh3_128"


class Digest:
    """Collects the tensors of one checkpoint, in any order, one hash a tensor.

    `algorithm` is a name of `ALGORITHMS`; with "/1" it gives the digests of before, in which a name of many lines could
    stand for several tensors. Now every field is hashed with its length.
    """

    def __init__(self, algorithm: str = DEFAULT):
        self.algorithm, _, version = algorithm.partition("/")
        if self.algorithm not in ALGORITHMS or version not in ("", "1", "2"):
            raise MergeError(f"unknown digest {algorithm!r}; known are {', '.join(ALGORITHMS)}")
        self._framed = version != "1"
        self._tensors: dict[str, tuple[Element, tuple[int, ...], str]] = {}

    def start(self):
        """A fresh hash for one tensor's row-major bytes."""
        return ALGORITHMS[self.algorithm]()

    def add(self, name: str, element: Element, shape: tuple[int, ...], content: str) -> None:
        """File one tensor's finished hash under its name."""
        self._tensors[name] = (element, shape, content)

    def _field(self, text: str, end: bytes = b"\0") -> bytes:
        data = text.encode()
        return len(data).to_bytes(8, "little") + data if self._framed else data + end

    def text(self) -> str:
        """`"<algorithm>/2:<hex>"` over all tensors in the order of their names; of version 1 without "/2"."""
        whole = self.start()
        kinds: dict[tuple[Element, tuple[int, ...]], bytes] = {}
        for name, (element, shape, content) in sorted(self._tensors.items()):
            kind = kinds.get((element, shape))  # many tensors are of few kinds
            if kind is None:
                kind = kinds[element, shape] = self._field(f"torch.{element}") + self._field(str(list(shape)))
            whole.update(self._field(name) + kind + self._field(content, b"\n"))
        return f"{self.algorithm}{'/2' if self._framed else ''}:{whole.hexdigest()}"


def kind_of(text: str) -> str:
    """Give the kind that a digest is of, as `Digest` takes it: `"xxh3_128/1"` of `"xxh3_128:..."`."""
    kind = text.partition(":")[0]
    return kind if "/" in kind else f"{kind}/1"


def digest(source: Source, algorithm: str = DEFAULT, *, section: str = "auto") -> str:
    """Give the digest of a checkpoint's tensors: the same for a file, its copy and the state dict.

    `section` is the part of a training file that a path means. Raises MergeError for what is no checkpoint.

    >>> import torch
    >>> digest({"w": torch.zeros(2)}) == digest({"w": torch.zeros(2)})
    True
    """
    whole = Digest(algorithm)
    tensors = opened(source, section)
    for name, spec in specs(tensors).items():
        content = whole.start()
        if isinstance(spec, TensorEntry):
            content.update(raw_bytes(spec.loaded() if spec.element.arithmetic else spec.raw()))
        else:
            content.update(raw_bytes(tensors[name].detach().cpu()))
        whole.add(name, spec.element, spec.shape, content.hexdigest())
    return whole.text()
