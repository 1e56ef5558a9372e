"""Options that several commands take, and how their values are read."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from merge.errors import MergeError

if TYPE_CHECKING:
    from merge.engine.files import Options
    from merge.plan.policy import Policy

Output = Annotated[
    Path,
    typer.Option(
        "--output", "-o", help="File (.safetensors .pt .pth .bin .ckpt .npz), T5X folder (.t5x) or folder to write."
    ),
]
Ratio = Annotated[float, typer.Option(help="Share of the second checkpoint.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Section = Annotated[str, typer.Option(help="Part of a training file to use, as listed by `inspect`.")]
Keep = Annotated[list[str] | None, typer.Option(help="Glob of tensors to leave as in the first checkpoint.")]
Drop = Annotated[list[str] | None, typer.Option(help="Glob of tensors to leave out.")]
Missing = Annotated[
    str,
    typer.Option(
        help="Names that some lack: 'error'; 'keep-first': unmerged, from the first that has it; 'zero-delta': as in "
        "the base; 'union': merged among those that have it."
    ),
]
Pick = Annotated[
    list[str] | None, typer.Option(help="'GLOB=NAME': tensors that come from one input, as a subtree; 'GLOB=': none.")
]


@dataclass(frozen=True)
class Common:
    """Options that every merging command takes."""

    name: Annotated[
        list[str] | None, typer.Option(help="Name of each checkpoint in turn, used for shares; default: file stems.")
    ] = None
    section: Section = "auto"
    keep: Keep = None
    drop: Drop = None
    pick: Pick = None
    slice_: Annotated[
        list[str] | None, typer.Option("--slice", help="'GLOB[AXIS,INDEX]=NAME': slices that come from one input.")
    ] = None
    missing: Missing = "error"
    vocab_rows: Annotated[
        str, typer.Option(help="Rows of a vocabulary that some lack: 'error', 'keep-first' or 'zero-delta'.")
    ] = "error"
    dtype: Annotated[
        str | None, typer.Option(help="Dtype of the merged tensors (float32, bfloat16, ...); default: their own.")
    ] = None
    compute_dtype: Annotated[str, typer.Option(help="Dtype of the arithmetic.")] = "float32"
    batchnorm: Annotated[str, typer.Option(help="BatchNorm statistics: 'average' or 'from:NAME'.")] = "average"
    allow_nonfinite: Annotated[bool, typer.Option("--allow-nonfinite", help="Accept infinite and NaN results.")] = False
    extrapolate: Annotated[
        bool, typer.Option("--extrapolate", help="Accept ratios outside [0, 1] and weights of another sum.")
    ] = False
    device: Annotated[str, typer.Option(help="Device for methods that need whole tensors.")] = "cpu"
    threads: Annotated[int, typer.Option(help="Worker threads; 0: as many as are useful.")] = 0
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output, as a whole.")] = False
    no_sync: Annotated[bool, typer.Option("--no-sync", help="Do not wait for the disk.")] = False
    shard_size: Annotated[str | None, typer.Option(help="Largest shard, as 2GB; the output is then a folder.")] = None
    digest: Annotated[str, typer.Option(help="Digest of the inputs: xxh3_128 (identity) or sha256.")] = "xxh3_128"
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, print the plan, write nothing.")] = False
    json_: Json = False


def policy_of(common: Common) -> Policy:
    from merge.plan.policy import Policy
    from merge.recipe.recipe import dtype_named

    return Policy(
        keep=tuple(common.keep or ()),
        drop=tuple(common.drop or ()),
        pick=tuple(common.pick or ()),
        slices=tuple(common.slice_ or ()),
        missing=common.missing,
        vocab_rows=common.vocab_rows,
        dtype=None if common.dtype is None else dtype_named(common.dtype),
        compute_dtype=dtype_named(common.compute_dtype),
        batchnorm=common.batchnorm,
        allow_nonfinite=common.allow_nonfinite,
        extrapolate=common.extrapolate,
    )


def options_of(common: Common, progress: Callable[[int], object] | None = None) -> Options:
    from merge.engine.files import Options

    return Options(
        overwrite=common.overwrite,
        threads=common.threads,
        device=common.device,
        sync=not common.no_sync,
        shard_size=byte_size(common.shard_size),
        digest=common.digest,
        command=shlex.join(["unival-merge", *sys.argv[1:]]),
        progress=progress,
    )


@contextmanager
def progress_bar(paths: Sequence[Path], section: str, label: str) -> Generator[Callable[[int], object] | None]:
    """A progress bar over the inputs' bytes on a terminal, None elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    from merge.checkpoint.open import open_checkpoint

    total = sum(open_checkpoint(path, section).nbytes for path in paths)
    with tqdm(total=total, unit="B", unit_scale=True, desc=label) as bar:
        yield bar.update


def byte_size(text: str | None) -> int | None:
    """`2GB` as 2,000,000,000. Raises MergeError for what is no size."""
    if text is None:
        return None
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "B": 1}
    unit = next((unit for unit in units if text.upper().endswith(unit)), "")
    try:
        size = int(float(text[: len(text) - len(unit)]) * units.get(unit, 1))
    except (ValueError, OverflowError) as error:
        raise MergeError(f"--shard-size {text!r}: give a size as 2GB or 500MB") from error
    if size <= 0:
        raise MergeError(f"--shard-size {text!r}: must be more than 0")
    return size
