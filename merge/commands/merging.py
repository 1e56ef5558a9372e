"""The commands that merge checkpoints: any method, the short forms of the usual ones, sweeps, recipes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merge.commands.coefficients import (
    Statistics,
    Weights,
    WeightsFrom,
    layers_taken,
    number,
    numbers,
    parameters_of,
    read_weights,
    summing_to_one,
    takes,
    with_statistics,
)
from merge.commands.options import (
    Choices,
    Output,
    Ratio,
    Running,
    inputs_of,
    policy_of,
)
from merge.commands.overrides import Overrides, overridden
from merge.commands.progress import progress_bar
from merge.errors import MergeError

if TYPE_CHECKING:
    from merge.engine.planned import Plan
    from merge.recipe.recipe import Recipe

First = Annotated[Path, typer.Argument(help="Checkpoint whose share is 1 - ratio.")]
Second = Annotated[Path, typer.Argument(help="Checkpoint whose share is the ratio.")]
Checkpoints = Annotated[list[Path], typer.Argument(metavar="CHECKPOINT", help="Files or folders to merge.")]
Normalize = Annotated[bool, typer.Option("--normalize", help="Divide the weights by their sum.")]


def known_methods() -> list[str]:
    """Give the names of all methods, for shells to complete."""
    from merge.methods import METHODS

    return list(METHODS)


def merge(
    method: Annotated[
        str, typer.Argument(help="How: `unival-merge methods` lists them.", autocompletion=known_methods)
    ],
    inputs: Annotated[list[Path], typer.Argument(metavar="INPUT", help="Files or folders to merge.")],
    output: Output,
    choices: Choices,
    running: Running,
    base: Annotated[Path | None, typer.Option(help="The common ancestor, for methods that take one.")] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "--parameter",
            "-p",
            metavar="NAME=[GLOB=]VALUE",
            help="A parameter: for all tensors, or for those that fit a glob (the first that fits decides). A value "
            "for each input in turn: density=0.2,0.5.",
        ),
    ] = None,
    weights_from: WeightsFrom = None,
    normalize: Normalize = False,
    statistics: Statistics = None,
) -> None:
    """Merge checkpoints by any method. `unival-merge methods METHOD` shows its formula and parameters.

    \b
    unival-merge merge ties vqa.pt caption.pt --base pretrained.pt -p density=0.2,0.5 -o merged.safetensors
    unival-merge merge slerp vqa.pt caption.pt -p ratio=0.3 -p 'ratio=encoder.*=1/2' -o merged.safetensors
    """
    from merge.recipe.parameters import method_named, parameters_for, varies

    chosen = method_named(method)
    if chosen.takes_base != (base is not None):
        raise MergeError(f"{method} {'needs a base: pass --base BASE' if chosen.takes_base else 'takes no --base'}")
    parameters = parameters_of(method, chosen, parameter or ())
    recipe = with_statistics(recipe_for(method, inputs, parameters, choices, base), statistics or ())
    weights = chosen.parameters.get("weights")
    if weights is None and (weights_from or normalize):
        raise MergeError(f"{'--weights-from' if weights_from else '--normalize'}: {takes(method, chosen)}")
    if weights_from is not None:
        if "weights" in parameters:
            raise MergeError(f"-p weights and --weights-from {weights_from}: give one of them")
        parameters["weights"] = read_weights(weights_from, [item.name for item in recipe.inputs])
    plain = isinstance(parameters.get("weights"), list) and not varies(parameters["weights"])
    if weights is not None and (weights.simplex or normalize) and plain:
        parameters["weights"] = summing_to_one(
            parameters["weights"], len(recipe.inputs), normalize=normalize, extrapolate=choices.extrapolate
        )
    recipe = recipe.with_parameters(**parameters)
    try:
        parameters_for(recipe, ())
    except MergeError as error:
        raise MergeError(f"{error}; {takes(method, chosen)}") from error
    carry_out(recipe, output, running)


def interpolate(first: First, second: Second, ratio: Ratio, output: Output, choices: Choices, running: Running) -> None:
    """Mix two checkpoints along the straight line between them: (1 - ratio) * FIRST + ratio * SECOND.

    \b
    unival-merge interpolate vqa.pt caption.pt --ratio 0.4 -o merged.safetensors
    """
    parameters = {"ratio": number("--ratio", ratio)}
    carry_out(recipe_for("interpolate", [first, second], parameters, choices), output, running)


def slerp(first: First, second: Second, ratio: Ratio, output: Output, choices: Choices, running: Running) -> None:
    """Mix two checkpoints along the great circle, tensor by tensor.

    sin((1-t)w)/sin(w) * FIRST + sin(tw)/sin(w) * SECOND, t the ratio and w the angle between two tensors.

    \b
    unival-merge slerp vqa.pt caption.pt --ratio 0.4 -o merged.safetensors
    """
    carry_out(recipe_for("slerp", [first, second], {"ratio": number("--ratio", ratio)}, choices), output, running)


def average(
    checkpoints: Checkpoints,
    output: Output,
    weights: Weights,
    choices: Choices,
    running: Running,
    normalize: Normalize = False,
) -> None:
    """Average any number of checkpoints, by weights of the sum 1 or equally: sum_i w_i * X_i.

    \b
    unival-merge average vqa.pt caption.pt grounding.pt -w 0.5,0.3,0.2 -o soup.safetensors
    """
    recipe = recipe_for("average", checkpoints, {}, choices)
    parameters = weights.of([item.name for item in recipe.inputs])
    if parameters:
        parameters["weights"] = summing_to_one(
            parameters["weights"], len(recipe.inputs), normalize=normalize, extrapolate=choices.extrapolate
        )
    carry_out(recipe.with_parameters(**parameters), output, running)


def task_arithmetic(
    base: Annotated[Path, typer.Argument(help="The common ancestor.")],
    experts: Annotated[list[Path], typer.Argument(metavar="EXPERT", help="Checkpoints finetuned from it.")],
    output: Output,
    weights: Weights,
    choices: Choices,
    running: Running,
    scale: Annotated[
        str, typer.Option(metavar="SCALE", help="Multiplier of the summed task vectors: 0.3, 30% or 1/3.")
    ] = "1.0",
) -> None:
    """Add what experts learned to their base: BASE + scale * sum_i w_i * (X_i - BASE). A negative weight unlearns.

    \b
    unival-merge task-arithmetic pretrained.pt vqa.pt caption.pt --scale 0.3 -o merged.safetensors
    """
    recipe = recipe_for("task-arithmetic", experts, {"scale": number("--scale", scale)}, choices, base)
    carry_out(recipe.with_parameters(**weights.of([item.name for item in recipe.inputs])), output, running)


def sweep(
    first: First,
    second: Second,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="Folder to make: one checkpoint a point, and sweep.json."),
    ],
    choices: Choices,
    running: Running,
    points: Annotated[int | None, typer.Option(help="Equally spaced ratios from 0 to 1; default: 11.")] = None,
    ratios: Annotated[
        str | None, typer.Option(metavar="RATIO,RATIO...", help="The ratios themselves: 0,1/4,50%,1.")
    ] = None,
) -> None:
    """Write many interpolations from one read of the inputs: (1 - r) * FIRST + r * SECOND for every ratio r.

    \b
    unival-merge sweep vqa.pt caption.pt --points 11 -o points
    """
    from merge.recipe.shares import ratios as spaced

    if ratios is not None and points is not None:
        raise MergeError(f"--points {points} and --ratios {ratios}: give one of them")
    values = spaced(11 if points is None else points) if ratios is None else numbers("--ratios", [ratios])
    recipe = recipe_for("interpolate", [first, second], {"ratio": values[0]}, choices)
    carry_out_sweep(recipe, [{"ratio": value} for value in values], output, running)


def run(
    recipe: Annotated[Path, typer.Argument(help="A .recipe.json, or mergekit's YAML.")],
    output: Output,
    choices: Overrides,
    running: Running,
    whole_depth: Annotated[
        bool,
        typer.Option("--whole-depth", help="Gradients of mergekit's slices run over all layers, not anew in each."),
    ] = False,
) -> None:
    """Make a merge again from its recipe, which lies beside every merged checkpoint. Says which inputs have changed.

    What the options choose stands in for what the recipe says.

    \b
    unival-merge run merged.safetensors.recipe.json -o again.safetensors
    unival-merge run merged.safetensors.recipe.json --dtype float16 -o half.safetensors
    """
    from merge.engine.files import recipe_of

    if output.resolve() in (recipe.resolve(), *recipe.resolve().parents):
        raise MergeError(f"{output}: is or holds the recipe {recipe}; choose another output")
    carry_out(overridden(recipe_of(recipe, whole_depth=whole_depth), choices), output, running)


def extract(
    checkpoint: Annotated[Path, typer.Argument(help="File or folder to take from.")],
    only: Annotated[list[str], typer.Option("--only", metavar="GLOB", help="Tensors to take; may be repeated.")],
    output: Output,
    choices: Choices,
    running: Running,
) -> None:
    """Write some tensors of a checkpoint as a checkpoint of its own, with its other entries.

    \b
    unival-merge extract vqa.pt --only 'encoder.image*' -o image-encoder.pt
    """
    _refuse_arithmetic("extract", choices)
    recipe = recipe_for("linear", [checkpoint], {"weights": 1.0}, choices)
    rules = [*recipe.policy.pick, *(f"{glob}={recipe.inputs[0].name}" for glob in only), "*="]
    carry_out(_picking(recipe, rules), output, running)


def layers(
    checkpoints: Annotated[list[Path], typer.Argument(metavar="CHECKPOINT", help="Files or folders to take from.")],
    take: Annotated[
        list[str],
        typer.Option(
            metavar="[LIST=][NAME:]FROM-TO,...",
            help="The layers of the result in turn, of the first checkpoint or of NAME, both ends included: 0-15,8-23; "
            "of LIST where there are several lists of layers (decoder.layers=0-3); may be repeated.",
        ),
    ],
    output: Output,
    choices: Choices,
    running: Running,
    zero: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB", help="Tensors of the result to set to zero: what a new layer adds; may be repeated."
        ),
    ] = None,
) -> None:
    """Put a model together of layers: repeat, drop, reorder them, or stack those of several checkpoints.

    What lies before the layers (embeddings) comes from the first one's checkpoint, what lies behind (the last norm, the
    head) from the last one's. config.json follows.

    \b
    unival-merge layers small.safetensors --take 0-15,8-23 -o deeper.safetensors
    unival-merge layers one.pt two.pt --take one:0-15,two:8-23 -o stacked.pt
    """
    from merge.recipe.recipe import Recipe

    recipe = recipe_for("linear", checkpoints, {}, choices)
    names = [item.name for item in recipe.inputs]
    weights: dict[str, Any] = {**dict.fromkeys(zero or (), 0.0), "*": 1.0}
    given = {"weights": weights, "normalize": False} if zero else {}
    carry_out(Recipe("linear", recipe.inputs, given, None, recipe.policy, layers_taken(take, names)), output, running)


def graft(
    target: Annotated[Path, typer.Argument(help="Checkpoint to change.")],
    source: Annotated[Path, typer.Argument(help="Checkpoint to take tensors from.")],
    output: Output,
    choices: Choices,
    running: Running,
) -> None:
    """Write TARGET with the tensors that --pick names taken from SOURCE, as a subtree. A glob alone means SOURCE.

    \b
    unival-merge graft vqa.pt caption.pt --pick 'decoder.*' -o grafted.pt
    """
    if not choices.pick:
        raise MergeError("graft needs --pick GLOB: which tensors come from the second checkpoint")
    _refuse_arithmetic("graft", choices)
    recipe = recipe_for("interpolate", [target, source], {"ratio": 0.0}, choices)
    to, giver = (item.name for item in recipe.inputs)
    rules = [rule if "=" in rule else f"{rule}={giver}" for rule in choices.pick]
    carry_out(_picking(recipe, [*rules, f"*={to}"]), output, running)


def recipe_for(
    method: str, paths: Sequence[Path], parameters: dict[str, Any], choices: Choices, base: Path | None = None
) -> Recipe:
    """The recipe that a command line means."""
    from merge.recipe.recipe import Recipe

    inputs, ancestor = inputs_of(paths, choices.name, choices.section, base, choices.rename)
    return Recipe(method, inputs, parameters, ancestor, policy_of(choices))


# Of a command that takes tensors as they are: what decides how tensors are merged, and what "*" leaves nothing to.
_ARITHMETIC = (
    *("keep", "slice_", "missing", "vocab_rows", "batchnorm", "dtype", "compute_dtype", "extrapolate"),
    *("tokenizer", "missing_rows", "pad_to_multiple"),
)


def _refuse_arithmetic(command: str, choices: Choices) -> None:
    """Raise MergeError for options that a command which takes tensors as they are cannot honour."""
    for name in _ARITHMETIC:
        if getattr(choices, name) not in (getattr(Choices(), name), []):
            option = f"--{name.rstrip('_').replace('_', '-')}"
            advice = "; `unival-merge convert` changes the dtype of what it wrote" if name == "dtype" else ""
            raise MergeError(f"{option} has no meaning here: {command} takes tensors as they are{advice}")


def _picking(recipe: Recipe, rules: Sequence[str]) -> Recipe:
    return replace(recipe, policy=replace(recipe.policy, pick=tuple(rules)))


def carry_out(recipe: Recipe, output: Path, running: Running) -> None:
    """Run a recipe, or show its plan, and say what was written."""
    from merge.engine.files import plan_run, recipe_of
    from merge.engine.stream import write
    from merge.recipe.shares import describe

    recipe = recipe_of(recipe)
    if running.dry_run:
        return _show_plan(plan_run(recipe, output, running.options()), running)
    with progress_bar(recipe.sources, recipe.method) as bar:
        record = write(plan_run(recipe, output, running.options(bar)))
    for note in record["output"]["notes"]:
        typer.echo(f"note: {note}", err=True)
    record["output"]["path"] = str(output)
    return _say(running, record, f"{output}: {describe(recipe)}\n{_told(record['output'])}")


def carry_out_sweep(recipe: Recipe, points: Sequence[Mapping[str, Any]], output: Path, running: Running) -> None:
    """Run a recipe at many points, or show the plan, and say what was written."""
    from merge.engine.files import plan_sweep, recipe_of
    from merge.engine.stream import write_sweep

    recipe = recipe_of(recipe)
    if running.dry_run:
        return _show_plan(plan_sweep(recipe, points, output, running.options()), running)
    with progress_bar(recipe.sources, "sweep") as bar:
        index = write_sweep(plan_sweep(recipe, points, output, running.options(bar)))
    index["output"] = {"path": str(output)}
    return _say(running, index, f"{output}: {len(points)} checkpoints\n{_told(index)}")


def _show_plan(plan: Plan, running: Running) -> None:
    from merge.recipe.shares import describe, made_of

    kinds = {kind: sum(unit.kind == kind for unit in plan.units) for kind in ("merge", "copy", "maximum")}
    rows = [
        {"output": str(target.path), "recipe": describe(target.recipe), "bytes": target.layout.size}
        for target in plan.targets
    ]
    lines = [f"{row['output']}: {row['recipe']}, {row['bytes']:,} bytes" for row in rows]
    lines += [f"{name}: {describe(item.recipe)}" for name, item in made_of(plan.recipe) if item.recipe is not None]
    counts = ", ".join(f"{count} tensors: {kind}" for kind, count in kinds.items())
    lines += [f"{', '.join(names[:3])}{', ...' * (len(names) > 3)}: {why}" for why, names in plan.reasons.items()]
    lines.append(f"reads {plan.bytes_read:,} bytes, writes {plan.bytes_written:,}; {counts}; nothing was written")
    sizes = {"bytes_read": plan.bytes_read, "bytes_written": plan.bytes_written}
    data = {"outputs": rows, **sizes, "tensors": kinds, "reasons": plan.reasons}
    _say(running, data, "\n".join(lines))


def _told(made: Mapping[str, Any]) -> str:
    """What happened to the tensors, in a line."""
    return f"  {'; '.join(made['summary'])}"


def _say(running: Running, data: dict[str, Any], text: str) -> None:
    typer.echo(json.dumps(data) if running.json_ else text)
