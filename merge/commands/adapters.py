"""The command `adapters`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
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
