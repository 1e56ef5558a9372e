"""The command `convert`."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
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
    from merge.commands import byte_size
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
