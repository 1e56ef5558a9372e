"""A checkpoint in another format, streamed by the engine as a merge of one: every tensor's bytes stay as they are."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from merge.checkpoint.save import recipe_path
from merge.engine.files import Options, run
from merge.errors import MergeError
from merge.plan.policy import Policy
from merge.recipe.recipe import Input, Recipe


@dataclass(frozen=True)
class Converted:
    """What was written. `before` and `after` are the digests of the weights: equal unless a dtype was asked for."""

    path: Path
    before: str
    after: str
    notes: tuple[str, ...]


def convert(
    source: str | Path,
    output: str | Path,
    section: str = "auto",
    dtype: torch.dtype | None = None,
    options: Options | None = None,
) -> Converted:
    """Write a checkpoint (or one section of it) in the format that the name of `output` says.

    `.safetensors`, torch (`.pt .pth .bin .ckpt`), `.npz`, `.t5x` (a T5X folder), no suffix for a folder of safetensors.
    Ties stay where the format can hold them; `dtype` rounds the floating tensors, otherwise all bytes stay.

        >>> convert("unified-io.t5x", "unified-io.safetensors", dtype=torch.float16)        # doctest: +SKIP

    Raises MergeError also where the bytes written are not those read.
    """
    policy = Policy(dtype=dtype, allow_nonfinite=True)
    path = run(Recipe("linear", (Input("input", Path(source), section),), policy=policy), output, options)
    record = json.loads(recipe_path(path).read_text(encoding="utf-8"))
    before, after = str(record["inputs"][0]["digest"]), str(record["output"]["digest"])
    if dtype is None and before != after:
        raise MergeError(f"{path}: has other weights than {source}: their digests are {after} and {before}")
    return Converted(path, before, after, tuple(record["output"]["notes"]))
