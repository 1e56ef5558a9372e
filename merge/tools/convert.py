"""Write a checkpoint in another format, streamed as a merge of one: every tensor's bytes stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from merge.checkpoint.open import Checkpoint
from merge.engine.files import plan_run
from merge.engine.planned import Options
from merge.engine.stream import write
from merge.errors import MergeError
from merge.plan.policy import Policy
from merge.recipe.recipe import Input, Recipe

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Converted:
    """What `convert` wrote.

    Attributes:
        path: the output.
        before, after: digests of the weights, as read and as written: equal unless a dtype was asked for.
        notes: what the format of the output cannot hold, one line each.
    """

    path: Path
    before: str
    after: str
    notes: tuple[str, ...]


def convert(
    source: str | Path | Checkpoint,
    output: str | Path,
    *,
    overwrite: bool = False,
    section: str = "auto",
    rename: str | Sequence[str] = (),
    dtype: str | torch.dtype | None = None,
    shard_size: int | None = None,
    allow_nonfinite: bool = False,
    command: str = "",
) -> Converted:
    """Write a checkpoint's file (or one section of it) in the format that the name of `output` says.

    `.safetensors`, torch (`.pt .pth .bin .ckpt`), `.npz`, `.t5x` (a T5X folder), no suffix for a folder of safetensors.
    Ties stay where the format can hold them; `dtype` rounds the floating tensors, otherwise all bytes stay. Values that
    the dtype cannot hold are refused unless `allow_nonfinite` is set; infinities and NaNs of the source are its own.
    `rename` gives tensors other names, by rules as of `renamed`. With `shard_size`, in bytes, the output is a folder of
    safetensors; `command` is noted in the recipe beside it.

        >>> convert("unified-io.t5x", "unified-io.safetensors", dtype="float16")            # doctest: +SKIP

    Raises MergeError also where the bytes written are not those read.
    """
    rules = (rename,) if isinstance(rename, str) else tuple(rename)
    if isinstance(source, Checkpoint):
        source, section, rules = source.path, source.section, (*source.rename, *rules)
    policy = Policy(dtype=dtype, allow_nonfinite=allow_nonfinite or dtype is None)
    recipe = Recipe("linear", (Input("input", _path(source), section, rename=rules),), policy=policy)
    options = Options(overwrite=overwrite, shard_size=shard_size, command=command, carry_nonfinite=True)
    plan = plan_run(recipe, output, options)
    path, record = plan.targets[0].path, write(plan)
    before, after = str(record["inputs"][0]["digest"]), str(record["output"]["digest"])
    if dtype is None and not rules and before != after:
        raise MergeError(f"{path}: has other weights than {source}: their digests are {after} and {before}")
    return Converted(path, before, after, tuple(record["output"]["notes"]))


def _path(source: object) -> Path:
    if isinstance(source, (str, Path)):
        return Path(source)
    raise MergeError(f"convert takes a file, not a {type(source).__name__}: save_checkpoint writes tensors in memory")
