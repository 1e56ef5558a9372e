"""The command line of the merging engine."""

from __future__ import annotations

import functools
import gc
import inspect
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merge.commands.adapters import app as adapters_app
from merge.commands.convert import app as conversion_app
from merge.errors import MergeError

if TYPE_CHECKING:
    from merge.engine.files import Options, Plan
    from merge.plan.policy import Policy
    from merge.recipe.recipe import Recipe

app = typer.Typer(
    help="Merge checkpoints, and see whether they can be merged.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(adapters_app)
app.add_typer(conversion_app)

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


def with_common(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `Common`, collected into its parameter `common`."""
    signature = inspect.signature(command, eval_str=True)
    hints = inspect.get_annotations(Common, eval_str=True)
    own = [item for item in signature.parameters.values() if item.name != "common"]
    shared = [
        inspect.Parameter(item.name, inspect.Parameter.KEYWORD_ONLY, default=item.default, annotation=hints[item.name])
        for item in fields(Common)
    ]
    own = [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in own]

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        common = Common(**{item.name: values.pop(item.name) for item in fields(Common)})
        command(common=common, **values)

    ordered = sorted([*own, *shared], key=lambda item: item.default is not inspect.Parameter.empty)
    wrapper.__signature__ = signature.replace(parameters=ordered)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {item.name: item.annotation for item in ordered}
    del wrapper.__wrapped__  # type: ignore[attr-defined]
    return wrapper


# -- merging ---------------------------------------------------------------------------------------------------------


@app.command()
@with_common
def interpolate(first: Path, second: Path, ratio: Ratio, output: Output, common: Common) -> None:
    """The straight line between two checkpoints: (1 - ratio) * FIRST + ratio * SECOND.

    \b
    unival-merge interpolate vqa.pt caption.pt --ratio 0.4 -o merged.safetensors
    """
    _merge("interpolate", [first, second], {"ratio": ratio}, output, common)


@app.command()
@with_common
def average(
    checkpoints: list[Path],
    output: Output,
    common: Common,
    weight: Annotated[
        list[float] | None, typer.Option("--weight", "-w", help="Share of each checkpoint in turn; default: equal.")
    ] = None,
) -> None:
    """A weighted average of any number of checkpoints: sum_i w_i * X_i.

    \b
    unival-merge average vqa.pt caption.pt grounding.pt -w 0.5 -w 0.3 -w 0.2 -o soup.safetensors
    """
    _merge("average", checkpoints, {"weights": weight} if weight else {}, output, common)


@app.command("task-arithmetic")
@with_common
def task_arithmetic(
    base: Path,
    experts: list[Path],
    output: Output,
    common: Common,
    scale: Annotated[float, typer.Option(help="Multiplier of the summed task vectors.")] = 1.0,
    weight: Annotated[
        list[float] | None,
        typer.Option("--weight", "-w", help="Multiplier of each task vector in turn (negative to forget)."),
    ] = None,
) -> None:
    """Add what experts learned to their base: BASE + scale * sum_i w_i * (X_i - BASE).

    \b
    unival-merge task-arithmetic base.pt vqa.pt caption.pt --scale 0.3 -o merged.safetensors
    """
    parameters = {"scale": scale, **({"weights": weight} if weight else {})}
    _merge("task-arithmetic", experts, parameters, output, common, base)


@app.command()
@with_common
def slerp(first: Path, second: Path, ratio: Ratio, output: Output, common: Common) -> None:
    """The great circle between two checkpoints, tensor by tensor: sin((1-t)w)/sin(w) * FIRST + sin(tw)/sin(w) * SECOND.

    \b
    unival-merge slerp vqa.pt caption.pt --ratio 0.4 -o merged.safetensors
    """
    _merge("slerp", [first, second], {"ratio": ratio}, output, common)


@app.command()
@with_common
def sweep(
    first: Path,
    second: Path,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to make: one checkpoint a point, and sweep.json.")
    ],
    common: Common,
    points: Annotated[int, typer.Option(help="Number of equally spaced ratios from 0 to 1.")] = 11,
    ratios: Annotated[str | None, typer.Option(help="The ratios themselves: 0,0.25,0.5,1.")] = None,
) -> None:
    """Many interpolations from one read of the inputs: (1 - r) * FIRST + r * SECOND for every ratio r.

    \b
    unival-merge sweep vqa.pt caption.pt --points 11 -o points/
    """
    from merge.engine.files import plan_sweep, sweep_to_files
    from merge.engine.memory import ratios as spaced

    values = _numbers(ratios) if ratios else spaced(points)
    recipe = _recipe("interpolate", [first, second], {"ratio": values[0]}, common)
    each = [{"ratio": value} for value in values]
    if common.dry_run:
        return _show_plan(plan_sweep(recipe, each, output, _options(common)), common)
    with _progress(recipe, common) as options:
        sweep_to_files(recipe, each, output, options)
    index = json.loads((output / "sweep.json").read_text(encoding="utf-8"))
    index["output"] = {"path": str(output)}
    return _say(common, index, f"{output}: {len(values)} checkpoints")


@app.command()
def run(
    recipe: Path,
    output: Output,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output, as a whole.")] = False,
    threads: Annotated[int, typer.Option(help="Worker threads; 0: as many as are useful.")] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the plan, write nothing.")
    ] = False,
    json_: Json = False,
) -> None:
    """Make a merge again from its recipe, which lies beside every merged checkpoint. Says which inputs have changed.

    \b
    unival-merge run merged.safetensors.recipe.json -o again.safetensors
    """
    from merge.recipe.recipe import read_recipe

    if output.resolve() in (recipe.resolve(), *recipe.resolve().parents):
        raise MergeError(f"{output}: is or holds the recipe {recipe}; choose another output")
    common = Common(overwrite=overwrite, threads=threads, dry_run=dry_run, json_=json_)
    _run(read_recipe(recipe), output, common)


@app.command()
@with_common
def extract(
    checkpoint: Path,
    only: Annotated[list[str], typer.Option("--only", help="Glob of tensors to take out.")],
    output: Output,
    common: Common,
) -> None:
    """Some tensors of a checkpoint as a checkpoint of its own, with its other entries.

    \b
    unival-merge extract vqa.pt --only 'encoder.image*' -o image-encoder.pt
    """
    recipe = _recipe("linear", [checkpoint], {"weights": 1.0}, common)
    rules = [*recipe.policy.pick, *(f"{glob}={recipe.inputs[0].name}" for glob in only), "*="]
    _run(_picking(recipe, rules), output, common)


@app.command()
@with_common
def graft(
    target: Path,
    source: Path,
    output: Output,
    common: Common,
) -> None:
    """TARGET with the tensors that --pick names taken from SOURCE, as a subtree. A glob alone means SOURCE.

    \b
    unival-merge graft vqa.pt caption.pt --pick 'decoder.*' -o grafted.pt
    """
    if not common.pick:
        raise MergeError("graft needs --pick GLOB: which tensors come from the second checkpoint")
    recipe = _recipe("interpolate", [target, source], {"ratio": 0.0}, common)
    to, whence = (item.name for item in recipe.inputs)
    rules = [rule if "=" in rule else f"{rule}={whence}" for rule in common.pick]
    _run(_picking(recipe, [*rules, f"*={to}"]), output, common)


# -- looking ---------------------------------------------------------------------------------------------------------


@app.command("inspect")
def inspect_(
    checkpoint: Path,
    section: Section = "auto",
    verify: Annotated[bool, typer.Option("--verify", help="Read the file and compare it with its recipe.")] = False,
    json_: Json = False,
) -> None:
    """What a checkpoint holds: sections, tensors, dtypes, sizes, ties, metadata, recipe.

    \b
    unival-merge inspect vqa.pt
    """
    from merge.tools.diagnose import inspect_checkpoint

    _print(inspect_checkpoint(checkpoint, section, check_digest=verify), json_)


@app.command()
def diff(first: Path, second: Path, section: Section = "auto", json_: Json = False) -> None:
    """How two checkpoints differ: names, shapes, and ||A - B|| / ||A|| and cosine by module.

    \b
    unival-merge diff vqa.pt caption.pt
    """
    from merge.tools.diagnose import diff_checkpoints

    with _bar([first, second], section, "diff") as progress:
        report = diff_checkpoints(first, second, section, progress=progress)
    _print(report, json_)


@app.command()
def doctor(
    checkpoints: list[Path],
    base: Annotated[Path | None, typer.Option(help="The common ancestor, if you have it.")] = None,
    name: Annotated[
        list[str] | None, typer.Option(help="Name of each checkpoint in turn; default: file stems.")
    ] = None,
    section: Section = "auto",
    keep: Keep = None,
    drop: Drop = None,
    missing: Missing = "error",
    json_: Json = False,
) -> None:
    """Can these be merged, and is it likely to work? Exit code 0: yes, 1: no. Every finding says what to do.

    \b
    unival-merge doctor vqa.pt caption.pt --base pretrained.pt
    """
    from merge.tools.diagnose import doctor as examine

    policy = _policy(Common(keep=keep, drop=drop, missing=missing))
    with _bar([*checkpoints, *([base] if base else [])], section, "doctor") as progress:
        report = examine(checkpoints, base, names=name, section=section, policy=policy, progress=progress)
    _print(report, json_)
    raise typer.Exit(report.exit_code)


# -- the parts they share --------------------------------------------------------------------------------------------


def _merge(
    method: str,
    paths: Sequence[Path],
    parameters: dict[str, Any],
    output: Path,
    common: Common,
    base: Path | None = None,
) -> None:
    _run(_recipe(method, paths, parameters, common, base), output, common)


def _run(recipe: Recipe, output: Path, common: Common) -> None:
    from merge.checkpoint.save import recipe_path
    from merge.engine.files import plan_run
    from merge.engine.files import run as engine_run
    from merge.recipe.recipe import describe

    if common.dry_run:
        return _show_plan(plan_run(recipe, output, _options(common)), common)
    with _progress(recipe, common) as options:
        engine_run(recipe, output, options)
    record = json.loads(recipe_path(output).read_text(encoding="utf-8"))
    for note in record["output"]["notes"]:
        typer.echo(f"note: {note}", err=True)
    record["output"]["path"] = str(output)
    return _say(common, record, f"{output}: {describe(recipe)}")


def _recipe(
    method: str, paths: Sequence[Path], parameters: dict[str, Any], common: Common, base: Path | None = None
) -> Recipe:
    from merge.recipe.recipe import Input, Recipe

    names = common.name or [_stem(path) for path in paths]
    if len(names) != len(paths):
        raise MergeError(f"{len(names)} --name were given for {len(paths)} checkpoints")
    inputs = tuple(Input(name, path, common.section) for name, path in zip(names, paths, strict=True))
    first = None if base is None else Input(_base_name(base, names), base, common.section)
    return Recipe(method, inputs, parameters, first, _policy(common))


def _picking(recipe: Recipe, rules: Sequence[str]) -> Recipe:
    return replace(recipe, policy=replace(recipe.policy, pick=tuple(rules)))


def _stem(path: Path) -> str:
    return path.name if os.path.isdir(path) else path.name.removesuffix(".index.json").rsplit(".", 1)[0]


def _base_name(base: Path, names: Sequence[str]) -> str:
    return _stem(base) if _stem(base) not in names else "base"


def _policy(common: Common) -> Policy:
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


def _options(common: Common, progress: Callable[[int], object] | None = None) -> Options:
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
def _bar(paths: Sequence[Path], section: str, label: str) -> Generator[Callable[[int], object] | None]:
    """A progress bar over the inputs' bytes on a terminal, None elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    from merge.checkpoint.open import open_checkpoint

    total = sum(open_checkpoint(path, section).nbytes for path in paths)
    with tqdm(total=total, unit="B", unit_scale=True, desc=label) as bar:
        yield bar.update


@contextmanager
def _progress(recipe: Recipe, common: Common) -> Generator[Options]:
    section = recipe.sources[0].section
    with _bar([source.path for source in recipe.sources], section, recipe.method) as progress:
        yield _options(common, progress)


def _show_plan(plan: Plan, common: Common) -> None:
    from merge.recipe.recipe import describe

    kinds = {kind: sum(unit.kind == kind for unit in plan.units) for kind in ("merge", "copy", "maximum")}
    rows = [
        {"output": str(target.path), "recipe": describe(target.recipe), "bytes": target.layout.size}
        for target in plan.targets
    ]
    lines = [f"{row['output']}: {row['recipe']}, {row['bytes']:,} bytes" for row in rows]
    counts = ", ".join(f"{count} tensors: {kind}" for kind, count in kinds.items())
    lines += [f"{', '.join(names[:3])}{', ...' * (len(names) > 3)}: {why}" for why, names in plan.reasons.items()]
    lines.append(f"reads {plan.bytes_read:,} bytes, writes {plan.bytes_written:,}; {counts}; nothing was written")
    sizes = {"bytes_read": plan.bytes_read, "bytes_written": plan.bytes_written}
    data = {"outputs": rows, **sizes, "tensors": kinds, "reasons": plan.reasons}
    _say(common, data, "\n".join(lines))


def _say(common: Common, data: dict[str, Any], text: str) -> None:
    typer.echo(json.dumps(data) if common.json_ else text)


def _print(report: Any, as_json: bool) -> None:
    typer.echo(json.dumps(report.to_json()) if as_json else report.text())


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise MergeError(f"--ratios {text!r}: give numbers with commas between them, as 0,0.25,0.5,1") from error


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


def main(application: typer.Typer = app, errors: tuple[type[Exception], ...] = (MergeError,)) -> None:
    """Run a command line: users' errors (of these classes) are one line on stderr and exit code 2, Ctrl-C is 130."""
    signal.signal(signal.SIGINT, _interrupted)
    gc.set_threshold(
        100_000, 50, 50
    )  # imports and plans make objects to stay: looking through them costs a quarter second
    try:
        application()
    except errors as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise SystemExit(2) from None


def _interrupted(number: int, frame: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # tidying up takes a moment and is not to be cut short
    typer.echo("interrupted: nothing was left half-written", err=True)
    raise SystemExit(130)
