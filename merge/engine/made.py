"""Outputs that no method of a recipe makes, as sums of adapters and aligned models: noted like merges, beside them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.checkpoint.atomic import replacing
from merge.checkpoint.digest import Digest, digest
from merge.checkpoint.formats.elements import element_of
from merge.checkpoint.formats.format import Layout
from merge.checkpoint.formats.tensors import raw_bytes
from merge.checkpoint.hub import recorded as absolute
from merge.checkpoint.open import Checkpoint
from merge.checkpoint.owned import CARD, recipe_path
from merge.checkpoint.save import Writer
from merge.engine.card import card
from merge.engine.files import noted_output, provenance
from merge.recipe.json import FORMAT

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Made:
    """What an output was made of, and how.

    Attributes:
        method: the command's name.
        told: how, in a few words: "base + 1.00 vqa".
        inputs: the checkpoints by name.
        base: what they were added to, where there is one.
        shares: their coefficients by name, where they have any.
        policy: choices that were made, by name.
    """

    method: str
    told: str
    inputs: Mapping[str, Checkpoint]
    base: Checkpoint | None = None
    shares: Mapping[str, float] = field(default_factory=dict[str, float])
    policy: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def record(self, output: Mapping[str, Any]) -> dict[str, Any]:
        """Give what is noted: the keys of a recipe, which `run` does not repeat, and what is said of the output."""
        return {
            "format": FORMAT,
            "method": self.method,
            "base": None if self.base is None else _input("base", self.base),
            "inputs": [_input(name, item) for name, item in self.inputs.items()],
            "parameters": {"weights": list(self.shares.values())} if self.shares else {},
            "policy": dict(self.policy),
            "output": {**output, "made": self.told},
            "provenance": provenance(""),
        }

    def card(self, name: str, files: Collection[str], recorded: Mapping[str, Any]) -> str:
        """Write the model card of a folder of this name with these files."""
        return card(name, files, f"{self.method}: {self.told}", self.shares, recorded)


def _input(name: str, source: Checkpoint) -> dict[str, Any]:
    return {"name": name, "path": absolute(source.path), "section": source.section, "digest": digest(source)}


def write_made(
    output: Path, layout: Layout, tensors: Iterable[tuple[Sequence[str], Tensor]], made: Made, *, overwrite: bool
) -> None:
    """Write tensors, each with all its names, with what they were made of beside them, and a folder's model card.

    Raises MergeError as `replacing` does; then nothing is written.
    """
    whole, kind = Digest(), {"folder": layout.folder, "overwrite": overwrite}
    with replacing(output, layout.size, recipe=True, copied=layout.copied, **kind) as partial:
        writer = Writer(layout, partial)
        try:
            for names, value in tensors:
                data, content = raw_bytes(value), whole.start()
                content.update(data)
                for name in names:
                    whole.add(name, element_of(value.dtype), tuple(value.shape), content.hexdigest())
                writer.write(names, 0, data)
            writer.close()
        finally:
            writer.release()
        recorded = made.record(noted_output(output, layout, whole.text(), {}))
        if layout.card:
            (partial / CARD).write_text(made.card(output.name, layout.names, recorded), encoding="utf-8")
        recipe_path(partial).write_text(json.dumps(recorded, indent=2) + "\n", encoding="utf-8")
