"""Options that several commands take: their help, their panels, and how their values are read."""

from __future__ import annotations

import difflib
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merge.commands.vocabularies import MissingRows, PadToMultiple, Tokenizer
from merge.errors import MergeError

if TYPE_CHECKING:
    from merge.commands.progress import Bar
    from merge.engine.planned import Options
    from merge.plan.policy import Policy
    from merge.recipe.recipe import Input

NAMES, POLICY, ARITHMETIC, RUNNING = "Names and sections", "Policy", "Arithmetic", "Running"
LONGEST = 60  # characters of a value that an error shows

# The words are written out: the tables that hold them import far more than `--help` needs. A test compares them.
MISSING = ("error", "keep-first", "zero-delta", "union")
VOCAB_ROWS = ("error", "keep-first", "zero-delta")
DTYPES = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
DIGESTS = ("xxh3_128", "sha256")


def one_of(words: Sequence[str], option: str, help: str, *, panel: str | None = None) -> Any:
    """Give an option that takes one of some words: its help lists them, its errors name them, shells complete them."""

    def check(value: str | None) -> str | None:
        if value is None or value in words:
            return value
        close = difflib.get_close_matches(value, words, 1, 0.5)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise typer.BadParameter(f"{shown(value)!r} is not one of {', '.join(words)}{hint}")

    def complete() -> list[str]:
        return list(words)

    metavar = "|".join(words)
    return typer.Option(
        option, help=help, metavar=metavar, callback=check, autocompletion=complete, rich_help_panel=panel
    )


def shown(value: str) -> str:
    """Give a value as errors show it: not longer than a line."""
    return value if len(value) <= LONGEST else f"{value[: LONGEST - 3]}..."


Output = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="OUT", help="File (.safetensors .pt .pth .bin .ckpt .npz), T5X folder or folder."
    ),
]
Ratio = Annotated[
    str, typer.Option("--ratio", metavar="RATIO", help="Share of the second checkpoint: 0.4, 40% or 2/5.")
]
Sections = Annotated[
    list[str] | None,
    typer.Option(
        "--section",
        metavar="[NAME=]PATH",
        help="Part of the training files to use, as `inspect` lists them, or of one of them; may be repeated.",
        rich_help_panel=NAMES,
    ),
]
Section = Annotated[str, typer.Option(metavar="PATH", help="Part of a training file to use, as `inspect` lists them.")]
Names = Annotated[
    list[str] | None,
    typer.Option(
        "--name",
        metavar="NAME",
        help="What to call each checkpoint in turn; default: file names, or folders' where those are equal.",
        rich_help_panel=NAMES,
    ),
]
Rename = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NAME:]FROM=TO",
        help="Other names for the tensors of all inputs or of one: 'module.=' strips a prefix, '=module.' adds it, "
        "'*.gamma=*.weight' goes star by star; may be repeated, in turn.",
        rich_help_panel=NAMES,
    ),
]
Keep = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Tensors to leave as in the first checkpoint.", rich_help_panel=POLICY),
]
Drop = Annotated[list[str] | None, typer.Option(metavar="GLOB", help="Tensors to leave out.", rich_help_panel=POLICY)]
Missing = Annotated[
    str,
    one_of(
        MISSING,
        "--missing",
        "Names that some lack: an error; unmerged from the first that has it; as in the base; or merged among those "
        "that have it.",
        panel=POLICY,
    ),
]
Dtype = Annotated[
    str | None, one_of(DTYPES, "--dtype", "Dtype of the floating tensors; default: their own.", panel=ARITHMETIC)
]
AllowNonfinite = Annotated[
    bool, typer.Option("--allow-nonfinite", help="Accept infinite and NaN results.", rich_help_panel=ARITHMETIC)
]
Dequantize = Annotated[
    bool,
    typer.Option(
        "--dequantize",
        help="Take 8-bit floats times the scales beside them, as bfloat16.",
        rich_help_panel=ARITHMETIC,
    ),
]
Accept = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CODE", help="Let a finding pass (docs/findings.md); may be repeated.", rich_help_panel=POLICY
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an existing output, as a whole.", rich_help_panel=RUNNING)
]
ShardSize = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Largest shard, as 2GB; the output is then a folder.", rich_help_panel=RUNNING),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=RUNNING)]


@dataclass(frozen=True)
class Choices:
    """Options that decide what is merged, and how."""

    name: Names = None
    section: Sections = None
    rename: Rename = None
    keep: Keep = None
    drop: Drop = None
    pick: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB=NAME",
            help="Tensors that come from one input, as a subtree; 'GLOB=': from none.",
            rich_help_panel=POLICY,
        ),
    ] = None
    slice_: Annotated[
        list[str] | None,
        typer.Option(
            "--slice",
            metavar="GLOB[AXIS,INDEX]=NAME",
            help="Slices of tensors that come from one input.",
            rich_help_panel=POLICY,
        ),
    ] = None
    missing: Missing = "error"
    vocab_rows: Annotated[
        str,
        one_of(
            VOCAB_ROWS, "--vocab-rows", "The same for vocabulary rows and input channels that some lack.", panel=POLICY
        ),
    ] = "error"
    batchnorm: Annotated[
        str,
        typer.Option(metavar="average|from:NAME", help="Whose BatchNorm statistics.", rich_help_panel=POLICY),
    ] = "average"
    dtype: Dtype = None
    compute_dtype: Annotated[
        str, one_of(("float32", "float64"), "--compute-dtype", "Dtype of the arithmetic.", panel=ARITHMETIC)
    ] = "float32"
    allow_nonfinite: AllowNonfinite = False
    extrapolate: Annotated[
        bool,
        typer.Option(
            "--extrapolate", help="Accept ratios outside [0, 1], weights of any sum.", rich_help_panel=ARITHMETIC
        ),
    ] = False
    dequantize: Dequantize = False
    untie: Annotated[
        bool,
        typer.Option(
            "--untie", help="Merge embeddings as the head where only some tie the two.", rich_help_panel=POLICY
        ),
    ] = False
    accept: Accept = None
    tokenizer: Tokenizer = ""
    missing_rows: MissingRows = ""
    pad_to_multiple: PadToMultiple = 0


@dataclass(frozen=True)
class Running:
    """Options that change how a merge runs and no bit of the result."""

    device: Annotated[
        str,
        typer.Option(metavar="DEVICE", help="Where methods that need whole tensors compute.", rich_help_panel=RUNNING),
    ] = "cpu"
    threads: Annotated[int, typer.Option(help="Worker threads; 0: as many as are useful.", rich_help_panel=RUNNING)] = 0
    shard_size: ShardSize = None
    digest: Annotated[
        str, one_of(DIGESTS, "--digest", "Digest of the inputs, of identity or cryptographic.", panel=RUNNING)
    ] = "xxh3_128"
    no_sync: Annotated[bool, typer.Option("--no-sync", help="Do not wait for the disk.", rich_help_panel=RUNNING)] = (
        False
    )
    overwrite: Overwrite = False
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything, print the plan, write nothing.", rich_help_panel=RUNNING),
    ] = False
    json_: Json = False

    def options(self, bar: Bar | None = None) -> Options:
        """These options as the engine takes them. Raises MergeError for what is no size."""
        from merge.engine.planned import Options

        return Options(
            overwrite=self.overwrite,
            threads=self.threads,
            device=self.device,
            sync=not self.no_sync,
            shard_size=byte_size(self.shard_size),
            digest=self.digest,
            command=command_line(),
            progress=bar,
            stage=None if bar is None else bar.stage,
        )


def policy_of(choices: Choices) -> Policy:
    """Give the policy that the options say."""
    from merge.plan.policy import Policy

    return Policy(
        keep=tuple(choices.keep or ()),
        drop=tuple(choices.drop or ()),
        pick=tuple(choices.pick or ()),
        slices=tuple(choices.slice_ or ()),
        missing=choices.missing,
        vocab_rows=choices.vocab_rows,
        dtype=choices.dtype,
        compute_dtype=choices.compute_dtype,
        batchnorm=choices.batchnorm,
        allow_nonfinite=choices.allow_nonfinite,
        extrapolate=choices.extrapolate,
        accept=tuple(choices.accept or ()),
        dequantize=choices.dequantize,
        untie=choices.untie,
        tokenizer=choices.tokenizer,
        missing_rows=choices.missing_rows,
        pad_to_multiple=choices.pad_to_multiple,
    )


def inputs_of(
    paths: Sequence[Path],
    names: Sequence[str] | None,
    sections: Sequence[str] | None,
    base: Path | None = None,
    rename: Sequence[str] | None = None,
) -> tuple[tuple[Input, ...], Input | None]:
    """Give the checkpoints and their base with names, sections and rules for their tensors' names.

    A section for all is the file itself for one that holds nothing but a state dict, beside others that have sections:
    a note says so. Raises MergeError where the names given are not as many as the checkpoints, and for a section of no
    input.
    """
    from merge.recipe.recipe import Input

    if names and len(names) != len(paths):
        raise MergeError(f"{len(names)} --name were given for {len(paths)} checkpoints")
    names = names or names_of(paths)
    called = [] if base is None else ["base" if stem(base) in {*names, *map(stem, paths)} else stem(base)]
    everywhere, parts = "auto", dict[str, str]()
    for text in sections or ():
        name, equals, part = text.rpartition("=")  # names may hold "=", as in epoch=3-step=100
        if not equals:
            everywhere = part
        elif name in (*called, *names):
            parts[name] = part
        else:
            known = ", ".join((*called, *names))
            raise MergeError(f"--section {shown(text)!r} names no input: they are {known}")
    every = list(zip((*called, *names), paths if base is None else (base, *paths), strict=True))
    if everywhere != "auto":
        plain = [name for name, path in every if name not in parts and _is_plain(path)]
        for name in plain if len(plain) < len(every) else ():
            typer.echo(f"note: {name} is a state dict without sections: taken whole, not {shown(everywhere)}", err=True)
            parts[name] = "."
    rules = {name: rules_of(name, (*called, *names), rename or ()) for name in (*called, *names)}

    made = [Input(name, path, parts.get(name, everywhere), rename=rules[name]) for name, path in every]
    return tuple(made[len(called) :]), made[0] if called else None


def _is_plain(path: Path) -> bool:
    """Whether a checkpoint has no sections; what cannot be opened is told of later."""
    from merge.checkpoint.formats.format import WHOLE
    from merge.checkpoint.open import find_checkpoint

    try:
        return list(find_checkpoint(path).content.sections) == [WHOLE]
    except MergeError:
        return False


def rules_of(name: str, names: Sequence[str], rules: Sequence[str]) -> tuple[str, ...]:
    """Give the rules for the names of one input's tensors: NAME:FROM=TO for the input NAME, FROM=TO for all.

    >>> rules_of("vqa", ["vqa", "caption"], ["vqa:module.=", "caption:model.=", "=encoder."])
    ('module.=', '=encoder.')
    """
    found: list[str] = []
    for rule in rules:
        whose = max((other for other in names if rule.startswith(f"{other}:")), key=len, default="")
        if whose in ("", name):
            found.append(rule.removeprefix(f"{whose}:") if whose else rule)
    return tuple(found)


def names_of(paths: Sequence[Path]) -> list[str]:
    """Give names by which checkpoints are told apart: file names without suffix, where those are equal the folders'.

    Of equal file names each is called by the nearest folder above it that no other of them shares, and where there is
    none by several folders in a row, or by them and the file.

        >>> names_of([Path("vqa.pt"), Path("runs/caption.pt")])
        ['vqa', 'caption']
        >>> names_of([Path(f"unival_{task}/checkpoint_best.pt") for task in ("vqa", "caption")])
        ['unival_vqa', 'unival_caption']
        >>> names_of([Path("vqa/last/model.pt"), Path("caption/last/model.pt")])
        ['vqa', 'caption']
    """
    stems = [stem(path) for path in paths]
    names = list(stems)
    for double in dict.fromkeys(word for word in stems if stems.count(word) > 1):
        places = [index for index, word in enumerate(stems) if word == double]
        folders = [paths[index].resolve().parent.parts[:0:-1] for index in places]
        others = {word for word in names if word != double}
        levels = range(max(map(len, folders)))
        single = [[parts[level : level + 1] for parts in folders] for level in levels]
        rows = [[(*parts[level::-1], *end) for parts in folders] for level in levels for end in ((), (double,))]
        for candidate in (*single, *rows):
            called = ["-".join(parts) for parts in candidate]
            if all(called) and len(set(called)) == len(called) and not others & set(called):
                for index, name in zip(places, called, strict=True):
                    names[index] = name
                break
    return names


def stem(path: Path) -> str:
    """Give a checkpoint's name without suffix, a folder's as it is, and a model's of the hub."""
    from merge.checkpoint.hub import is_hub

    if is_hub(path):
        return path.name.partition("@")[0]
    if os.path.isdir(path):
        return path.name
    name = path.name.removesuffix(".recipe.json").removesuffix(".index.json").removesuffix(".tar")  # .pth.tar is one
    return name.rsplit(".", 1)[0]


def command_line() -> str:
    """Give the command line, to note in recipes."""
    return shlex.join(["unival-merge", *sys.argv[1:]])


def byte_size(text: str | None) -> int | None:
    """`2GB` as 2,000,000,000. Raises MergeError for what is no size."""
    if text is None:
        return None
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "B": 1}
    unit = next((unit for unit in units if text.upper().endswith(unit)), "")
    try:
        size = int(float(text[: len(text) - len(unit)]) * units.get(unit, 1))
    except (ValueError, OverflowError) as error:
        raise MergeError(f"--shard-size {shown(text)!r}: give a size as 2GB or 500MB") from error
    if size <= 0:
        raise MergeError(f"--shard-size {shown(text)!r}: must be more than 0")
    return size
