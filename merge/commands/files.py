"""The commands that make other files of files: another format, merged adapters, another order of units."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from merge.commands.coefficients import Weights, number, parameters_of
from merge.commands.options import (
    Accept,
    AllowNonfinite,
    Dequantize,
    Dtype,
    Json,
    Names,
    Output,
    Overwrite,
    Rename,
    Section,
    ShardSize,
    byte_size,
    command_line,
    one_of,
    rules_of,
    stem,
)
from merge.errors import MergeError

if TYPE_CHECKING:
    from merge.tools.align import Alignment


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="A file or folder of any layout that is read.")],
    output: Output,
    section: Section = "auto",
    rename: Rename = None,
    dtype: Dtype = None,
    shard_size: ShardSize = None,
    allow_nonfinite: AllowNonfinite = False,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Write a checkpoint in another format, tensors bit for bit.

    \b
    unival-merge convert vqa.pt -o vqa.safetensors
    unival-merge convert vqa.safetensors --shard-size 2GB -o vqa
    """
    from merge.tools.convert import convert as write

    done = write(
        checkpoint,
        output,
        overwrite=overwrite,
        section=section,
        dtype=dtype,
        rename=rules_of(stem(checkpoint), [stem(checkpoint)], rename or ()),
        shard_size=byte_size(shard_size),
        allow_nonfinite=allow_nonfinite,
        command=command_line(),
    )
    asked = [f"the dtype is {dtype}"] * (dtype is not None) + ["tensors have other names"] * bool(rename)
    changed = f"{' and '.join(asked)}; the digest is {done.after}, the input's was {done.before}"
    same = f"the weights are the same, digest {done.after}"
    text = f"{done.path}: {same if done.before == done.after else changed}"
    _tell(done.notes, json.dumps({**asdict(done), "path": str(done.path)}) if json_ else text)


def adapter_modes() -> list[str]:
    """Give the names of all ways to merge adapters, for shells to complete."""
    from merge.tools.adapters.modes import modes

    return modes()


def adapters(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR", help="Folders of LoRA adapters in peft's layout.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="Folder to make; with --base a checkpoint.")
    ],
    weights: Weights,
    mode: Annotated[
        str,
        typer.Option(
            metavar="exact|factors|knots|METHOD",
            help="Ranks add up; A and B are averaged, another change; KnOTS, or a method, merges the changes.",
            autocompletion=adapter_modes,
        ),
    ] = "exact",
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", metavar="NAME=VALUE", help="A parameter of the method: density=0.2."),
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Recompress the exact sum to this rank, by singular values.")] = None,
    name: Names = None,
    base: Annotated[Path | None, typer.Option(help="Add the sum to this checkpoint instead.")] = None,
    section: Section = "auto",
    allow_nonfinite: AllowNonfinite = False,
    dequantize: Dequantize = False,
    accept: Accept = None,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Merge LoRA adapters, by default each by 1 / n: sum_i w_i * s_i * B_i A_i, alone or added to their base.

    \b
    unival-merge adapters vqa_lora caption_lora -w 0.4,0.6 -o merged_lora
    unival-merge adapters vqa_lora caption_lora --base model.safetensors -o merged.safetensors
    unival-merge adapters vqa_lora caption_lora --mode knots -p density=0.2 -o knots_lora
    """
    from merge.tools.adapters.modes import EXACT, method_of

    if mode in EXACT and parameter:
        raise MergeError(f"--mode {mode} takes no -p")
    parameters = {} if mode in EXACT else parameters_of(mode, method_of(mode), parameter or ())
    from merge.tools.adapters.files import AdapterOptions, adapters_to_file

    names = name or [folder.resolve().name for folder in folders]
    options = AdapterOptions(
        weights=weights.of(names).get("weights"),
        mode=mode,
        parameters=parameters,
        rank=rank,
        base=base,
        section=section,
        names=names,
        allow_nonfinite=allow_nonfinite,
        dequantize=dequantize,
        accept=accept or (),
        overwrite=overwrite,
    )
    report = adapters_to_file(folders, output, options)
    _tell(report.notes, json.dumps(report.data) if json_ else report.text)


def extract_lora(
    tuned: Annotated[Path, typer.Argument(help="The finetuned model.")],
    base: Annotated[Path, typer.Argument(help="What it was finetuned from.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to make, as peft's.")],
    rank: Annotated[
        str, typer.Option(metavar="R|auto", help="Largest rank of a module; auto: as --energy asks.")
    ] = "auto",
    energy: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="Share of each change's energy to keep; default: 0.99, with a rank 1."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Tensors whose changes are taken; may be repeated.")
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Tensors whose changes are left out; may be repeated.")
    ] = None,
    whole: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Tensors to save whole, as of layers that peft cannot factor."),
    ] = None,
    dtype: Annotated[str, one_of(("float32", "float16", "bfloat16"), "--dtype", "Dtype of the factors.")] = "float32",
    section: Section = "auto",
    accept: Accept = None,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Write what finetuning changed as a LoRA adapter that peft loads over BASE: a truncated SVD, matrix by matrix.

    \b
    unival-merge extract-lora tuned.safetensors model.safetensors --rank 8 -o extracted_lora
    unival-merge extract-lora tuned.safetensors model.safetensors --energy 0.9 -o small_lora
    """
    from merge.commands.progress import progress_bar
    from merge.recipe.recipe import Input
    from merge.tools.adapters.extract import ExtractOptions, extract_to_file

    if rank != "auto" and not rank.isdecimal():
        raise MergeError(f"--rank {rank!r}: give a whole number, or auto")
    with progress_bar([Input("tuned", tuned, section)], "extract-lora") as bar:
        options = ExtractOptions(
            rank=rank if rank == "auto" else int(rank),
            energy=None if energy is None else number("--energy", energy),
            only=only or (),
            drop=drop or (),
            whole=whole or (),
            dtype=dtype,
            accept=accept or (),
            progress=bar,
        )
        made = extract_to_file(tuned, base, output, options, section=section, overwrite=overwrite)
    lines = [f"{item['module']}: rank {item['rank']}, {item['left_out']:.3%} left out" for item in made["modules"]]
    lines += [f"{module}: whole" for module in made["whole"]]
    lines += [f"{module}: {count} rows" for module, count in made["rows"].items()]
    skipped = made["skipped"]
    notes = [f"changes left out: {', '.join(skipped[:3])}{' ...' * (len(skipped) > 3)} ({len(skipped)})"]
    _tell(notes if skipped else [], json.dumps(made) if json_ else "\n".join([f"{output}: {made['told']}", *lines]))


def aligning(load: Callable[[], Callable[..., Alignment]]) -> Callable[..., None]:
    """Make the command `align` of a function like `align_checkpoint`, which `load` imports when it is needed."""

    def align(
        first: Annotated[Path, typer.Argument(help="Model whose order of units is taken.")],
        second: Annotated[Path, typer.Argument(help="Model to put into that order.")],
        output: Output,
        groups: Annotated[
            Path | None,
            typer.Option(
                help='JSON of which axes move together: {"hidden": {"fc1.weight": 0, "fc1.bias": 0, "fc2.weight": 1}}.'
            ),
        ] = None,
        section: Section = "auto",
        overwrite: Overwrite = False,
    ) -> None:
        """Write SECOND with its units in the order of FIRST's, so that the two can be averaged. It computes the same.

        For models of one architecture trained apart (Git Re-Basin, arXiv 2209.04836); those finetuned from one
        ancestor are aligned already. Needs SciPy (the extra `align`), and to know which units move together: UnIVAL's
        are known, those of a plain chain of layers are read off the shapes, and any other model's are given by
        --groups.

        \b
        unival-merge align a.pt b.pt -o b_aligned.pt
        unival-merge align a.pt b.pt --groups groups.json -o b_by_groups.pt
        """
        if output.exists() and not overwrite:  # told before the work, not after it
            raise MergeError(f"{output}: exists; choose another name or pass --overwrite")
        from tqdm import tqdm

        def step(_: object) -> None:
            bar.update()

        with tqdm(desc="align", unit=" groups", disable=None) as bar:
            done = load()(
                first,
                second,
                output,
                groups=groups,
                section=section,
                overwrite=overwrite,
                progress=step,
            )
        typer.echo(
            f"{output}: {done.moved:,} of {done.units:,} units of {second} moved; cosine with {first} "
            f"{done.before:.4f} before, {done.after:.4f} now"
        )

    return align


def _aligner() -> Callable[..., Alignment]:
    from merge.tools.align import align_checkpoint

    return align_checkpoint


align = aligning(_aligner)


def _tell(notes: Sequence[str], text: str) -> None:
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(text)
