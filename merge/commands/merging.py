"""The commands that merge."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merge.commands.options import Common, Json, Output, Ratio, options_of, policy_of, progress_bar
from merge.errors import MergeError

if TYPE_CHECKING:
    from merge.engine.files import Options, Plan
    from merge.recipe.recipe import Recipe


def interpolate(first: Path, second: Path, ratio: Ratio, output: Output, common: Common) -> None:
    """The straight line between two checkpoints: (1 - ratio) * FIRST + ratio * SECOND.

    \b
    unival-merge interpolate vqa.pt caption.pt --ratio 0.4 -o merged.safetensors
    """
    _merge("interpolate", [first, second], {"ratio": ratio}, output, common)


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


def slerp(first: Path, second: Path, ratio: Ratio, output: Output, common: Common) -> None:
    """The great circle between two checkpoints, tensor by tensor: sin((1-t)w)/sin(w) * FIRST + sin(tw)/sin(w) * SECOND.

    \b
    unival-merge slerp vqa.pt caption.pt --ratio 0.4 -o merged.safetensors
    """
    _merge("slerp", [first, second], {"ratio": ratio}, output, common)


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
        return _show_plan(plan_sweep(recipe, each, output, options_of(common)), common)
    with _progress(recipe, common) as options:
        sweep_to_files(recipe, each, output, options)
    index = json.loads((output / "sweep.json").read_text(encoding="utf-8"))
    index["output"] = {"path": str(output)}
    return _say(common, index, f"{output}: {len(values)} checkpoints")


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
        return _show_plan(plan_run(recipe, output, options_of(common)), common)
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
    return Recipe(method, inputs, parameters, first, policy_of(common))


def _picking(recipe: Recipe, rules: Sequence[str]) -> Recipe:
    return replace(recipe, policy=replace(recipe.policy, pick=tuple(rules)))


def _stem(path: Path) -> str:
    return path.name if os.path.isdir(path) else path.name.removesuffix(".index.json").rsplit(".", 1)[0]


def _base_name(base: Path, names: Sequence[str]) -> str:
    return _stem(base) if _stem(base) not in names else "base"


@contextmanager
def _progress(recipe: Recipe, common: Common) -> Generator[Options]:
    section = recipe.sources[0].section
    with progress_bar([source.path for source in recipe.sources], section, recipe.method) as progress:
        yield options_of(common, progress)


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


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise MergeError(f"--ratios {text!r}: give numbers with commas between them, as 0,0.25,0.5,1") from error
