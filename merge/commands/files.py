"""The commands that make other files of files: another format, merged adapters."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from merge.commands.options import byte_size


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="A file or folder of any layout that is read.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="File (.safetensors .pt .npz), T5X folder (.t5x), folder of safetensors."),
    ],
    section: Annotated[str, typer.Option(help="Part of a training file to use, as listed by `inspect`.")] = "auto",
    dtype: Annotated[str | None, typer.Option(help="Dtype of the floating tensors; default: their own.")] = None,
    shard_size: Annotated[str | None, typer.Option(help="Largest shard, as 2GB; the output is then a folder.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output, as a whole.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """A checkpoint in another format, tensors bit for bit.

    \b
    unival-merge convert vqa.pt --section model -o vqa.safetensors
    unival-merge convert unified-io.t5x --shard-size 2GB -o unified-io
    """
    from merge.engine.files import Options
    from merge.recipe.recipe import dtype_named
    from merge.tools.convert import convert as write

    command = shlex.join(["unival-merge", *sys.argv[1:]])
    options = Options(overwrite=overwrite, shard_size=byte_size(shard_size), command=command)
    done = write(checkpoint, output, section, None if dtype is None else dtype_named(dtype), options)
    for note in done.notes:
        typer.echo(f"note: {note}", err=True)
    same = "the weights are the same" if done.before == done.after else f"{done.before} became"
    data = {**asdict(done), "path": str(done.path)}
    typer.echo(json.dumps(data) if json_ else f"{done.path}: {same}, digest {done.after}")


def adapters(
    folders: Annotated[list[Path], typer.Argument(help="Folders of LoRA adapters in peft's layout.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to make; with --base a checkpoint.")],
    weight: Annotated[
        list[float] | None, typer.Option("--weight", "-w", help="Multiplier of each adapter in turn; default: 1 / n.")
    ] = None,
    mode: Annotated[
        str, typer.Option(help="'exact' (ranks add up), or 'factors': average A and B, which is another change.")
    ] = "exact",
    rank: Annotated[
        int | None, typer.Option(help="Recompress the exact sum to this rank, by its singular values.")
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option(help="Name of each adapter in turn, used for shares; default: the folders'.")
    ] = None,
    base: Annotated[Path | None, typer.Option(help="Add the sum to this checkpoint instead.")] = None,
    section: Annotated[str, typer.Option(help="Part of the base to use, as listed by `inspect`.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output, as a whole.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Merge LoRA adapters: sum_i w_i * s_i * B_i A_i, as one adapter or added to their base.

    \b
    unival-merge adapters vqa_lora caption_lora -w 0.4 -w 0.6 -o merged_lora
    unival-merge adapters vqa_lora caption_lora --base model.safetensors -o merged.safetensors
    """
    from merge.tools.adapters.files import AdapterOptions, adapters_to_file

    options = AdapterOptions(
        weights=weight or None,
        mode=mode,
        rank=rank,
        base=base,
        section=section,
        names=name or None,
        overwrite=overwrite,
    )
    report = adapters_to_file(folders, output, options)
    for note in report.notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(json.dumps(report.data) if json_ else report.text)
