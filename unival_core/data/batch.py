"""One example of a task as ids and pixels, and many of them as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from unival_core.config import BOS, EOS, PAD
from unival_core.data.answers import Answers
from unival_core.errors import UnivalError
from unival_core.inputs import MEDIA, TEXT, Inputs
from unival_core.media.image import scale_pixels
from unival_core.text import right_pad


@dataclass(frozen=True, eq=False)
class Example:
    """One row of a file, ready to be batched.

    Ids come without bos and eos: `source` is what the encoder reads, `prefix` what the decoder is given, `target` what
    it has to write. `media` is the medium as exact small integers: uint8 3 x height x width pixels, or 3 x frames x
    height x width, or int16 samples. `size` is (width, height) of the image before it was resized, which boxes refer
    to; `reference` is what the metrics of the task compare an answer with; `place` is file:line. `answers` are the only
    ones that training chooses among. `further` are targets besides the first one, in evaluation.
    """

    task: str
    name: str
    place: str
    source: list[int]
    target: list[int]
    prefix: list[int] = field(default_factory=list[int])
    medium: str | None = None
    media: Tensor | None = None
    size: tuple[int, int] | None = None
    confidence: float = 1.0
    answers: Answers | None = None
    writes_image: bool = False
    reference: Any = None
    further: list[list[int]] = field(default_factory=list[list[int]])


@dataclass(frozen=True, eq=False)
class Batch:
    """B examples, of one task or of several.

    `target_inputs` B x U begins with bos, then comes the prefix; `targets` B x U is padding (1) where nothing is to be
    learnt. `allowed` (B x U x vocabulary, bool) is there if the answers of some example are limited; `code_rows` (B,
    bool) if some example writes an image.
    """

    inputs: Inputs
    target_inputs: Tensor
    targets: Tensor
    confidence: Tensor
    prefix: list[list[int]]
    examples: list[Example]
    allowed: Tensor | None = None
    code_rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def tokens(self) -> int:
        """Count the targets that are learnt."""
        return int((self.targets != PAD).sum())

    def to(self, device: torch.device | str) -> Batch:
        """Return the same batch with its tensors on another device."""
        names = ("inputs", "target_inputs", "targets", "confidence", "allowed", "code_rows")
        present = {name: value for name in names if (value := getattr(self, name)) is not None}
        return replace(self, **{name: value.to(device) for name, value in present.items()})


def collate(examples: Sequence[Example]) -> Batch:
    """Return one batch of any mixture of examples, texts right-padded; media of one kind must have one shape."""
    if not examples:
        raise UnivalError("a batch needs at least one example")
    target_inputs, targets, allowed = taught(examples)
    return Batch(
        inputs=_inputs(examples),
        target_inputs=target_inputs,
        targets=targets,
        confidence=torch.tensor([e.confidence for e in examples]),
        prefix=[e.prefix for e in examples],
        examples=list(examples),
        allowed=allowed,
        code_rows=torch.tensor([e.writes_image for e in examples]) if any(e.writes_image for e in examples) else None,
    )


def taught(examples: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return what the decoder is taught of examples: `target_inputs`, `targets` and `allowed` of a `Batch`."""
    target_inputs = right_pad([[BOS, *e.prefix, *e.target] for e in examples])
    targets = right_pad([[*[PAD] * len(e.prefix), *e.target, EOS] for e in examples])
    return target_inputs, targets, _allowed(examples)


def collate_by_task(examples: Sequence[Example]) -> list[Batch]:
    """Return one batch for each task among the examples, in the order of their first appearance."""
    tasks = dict.fromkeys(example.task for example in examples)
    return [collate([example for example in examples if example.task == task]) for task in tasks]


def _inputs(examples: Sequence[Example]) -> Inputs:
    tokens = right_pad([[BOS, *e.source, EOS] for e in examples])
    kinds = [TEXT if e.medium is None else MEDIA.index(e.medium) for e in examples]
    modality = torch.tensor(kinds) if len({*kinds}) > 1 else None
    media = {f"{name}s": _stack([e for e in examples if e.medium == name]) for name in MEDIA}
    return Inputs(tokens, modality=modality, **{name: value for name, value in media.items() if value is not None})


def _stack(examples: Sequence[Example]) -> Tensor | None:
    """Return media of one kind as the model reads them."""
    values = [e.media for e in examples if e.media is not None]
    if not values:
        return None
    if odd := next((i for i, value in enumerate(values) if value.shape != values[0].shape), 0):
        raise UnivalError(
            f"{examples[odd].place}: {examples[odd].medium} of shape {tuple(values[odd].shape)} in a batch of "
            f"{tuple(values[0].shape)}: give all datasets of a batch one size"
        )
    stacked = torch.stack(values)
    return scale_pixels(stacked) if stacked.dtype == torch.uint8 else stacked.float() / 32767.0


def _allowed(examples: Sequence[Example]) -> Tensor | None:
    """Tell which ids each target may be chosen from: those that go on with some allowed answer."""
    rows_of: dict[Answers, list[int]] = {}
    for row, example in enumerate(examples):
        if example.answers is not None:
            rows_of.setdefault(example.answers, []).append(row)
    if not rows_of:
        return None
    width = max(1 + len(e.prefix) + len(e.target) for e in examples)
    allowed = torch.ones(len(examples), width, next(iter(rows_of)).vocabulary, dtype=torch.bool)
    for answers, rows in rows_of.items():
        targets = right_pad([[*examples[row].target, EOS] for row in rows])
        counted = targets != PAD
        free = torch.zeros(int(counted.sum()), answers.vocabulary)
        start = torch.tensor([len(examples[row].prefix) for row in rows])
        place, column = counted.nonzero(as_tuple=True)
        kept = answers.trie.keep_allowed(free, answers.trie.nodes(targets)[counted]) == 0
        allowed[torch.tensor(rows)[place], start[place] + column] = kept
    return allowed
