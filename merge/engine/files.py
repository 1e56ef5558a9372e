"""What a merge to files will do, checked before it is begun: `plan_run`, `plan_sweep`; and what its recipes say."""

# What users give is checked, whatever its type is said to be.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from merge._version import VERSION
from merge.checkpoint.atomic import check_target
from merge.checkpoint.digest import Digest, kind_of
from merge.checkpoint.formats.format import DICTIONARY, Layout, path_of
from merge.checkpoint.formats.tensors import Spec
from merge.checkpoint.hub import located, recorded
from merge.checkpoint.open import Checkpoint
from merge.checkpoint.owned import CARD
from merge.checkpoint.parts import with_parts
from merge.checkpoint.save import lay_out, suffix_like
from merge.checkpoint.scaled import dequantized
from merge.checkpoint.source import Source, StateDict, opened
from merge.engine.inner import Inner, noted
from merge.engine.planned import Options, Plan, Target
from merge.errors import MergeError
from merge.plan.findings import Finding, warn
from merge.plan.paired import merging, plan_for
from merge.plan.policy import Policy
from merge.plan.sidecars import sidecars
from merge.plan.summary import left_out
from merge.plan.units import by_name, dictionary
from merge.recipe.inputs import open_inputs, plainly, restacked
from merge.recipe.json import read_recipe, to_json
from merge.recipe.nested import is_recipe, whole
from merge.recipe.parameters import check_inputs, method_named, parameters_for
from merge.recipe.recipe import Input, Recipe
from merge.recipe.shares import SHARES, as_name, file_stem

MOST_FILES = 10_000  # of a sweep
IDENTITY = "unival_merge"  # metadata of a file: its recipe, without paths
OF_EXPERTS = "expert."  # metadata of such names are kept from all inputs, others from the first one


def plan_run(recipe: Recipe | str | Path, output: str | Path, options: Options | None = None) -> Plan:
    """Check a merge as far as headers (and the values of integer tensors) tell. Raises MergeError with all problems."""
    recipe = recipe_of(recipe)
    plan = _checked(recipe, [(recipe, path_of(output, "the output"))], options)
    _refuse_inputs(plan.targets[0].path, plan)
    (target,) = plan.targets
    layout = target.layout
    kind: dict[str, Any] = {"folder": layout.folder, "overwrite": plan.options.overwrite, "copied": layout.copied}
    check_target(target.path, layout.size, recipe=True, **kind)
    return plan


def plan_sweep(
    recipe: Recipe | str | Path,
    points: Sequence[Mapping[str, Any]],
    folder: str | Path,
    options: Options | None = None,
) -> Plan:
    """Check a sweep like `plan_run`; every point is named by its shares, in the format of the first input."""
    recipe, folder = recipe_of(recipe), path_of(folder, "the output")
    if not 1 <= len(points) <= MOST_FILES:
        raise MergeError(f"{folder}: a sweep needs at least one point and at most {MOST_FILES:,}, not {len(points):,}")
    recipes = [recipe.with_parameters(**point) for point in points]
    for item in recipes:
        parameters_for(item, [])
    end = _suffix_like(recipe.sources[0]) or ".safetensors"
    names: list[str] = []
    keys = dict.fromkeys(key for point in points for key in point if key not in SHARES)
    varying = {key for key in keys if any(point.get(key) != points[0].get(key) for point in points)}
    for item, point in zip(recipes, points, strict=True):
        varied = [key for key in point if key in varying]
        names.append(file_stem(item) + "".join(f"_{key}-{as_name(str(point[key]))}" for key in varied) + end)
    if len(set(names)) < len(names):
        double = next(name for name, count in Counter(names).items() if count > 1)
        raise MergeError(f"{folder}: two points have the same shares: {double}")
    if options is not None and options.shard_size is not None:
        raise MergeError("a sweep writes one file a point: shard_size is for single merges")
    plan = _checked(recipe, [(item, folder / name) for item, name in zip(recipes, names, strict=True)], options)
    _refuse_inputs(folder, plan)
    check_target(folder, plan.bytes_written, folder=True, overwrite=plan.options.overwrite)
    return plan


def recipe_of(recipe: Recipe | str | Path, *, whole_depth: bool = False) -> Recipe:
    """Give the recipe, read where its path is given, as are those of inputs that are recipes. Raises MergeError."""
    if isinstance(recipe, (str, Path)):
        recipe = read_recipe(recipe, whole_depth=whole_depth, opening=open_input)
    if not isinstance(recipe, Recipe):
        raise MergeError(f"a {type(recipe).__name__} is no recipe: give a merge.Recipe or the path of one's file")
    return whole(recipe, open_input)


def open_input(item: Input) -> Checkpoint:
    """Open an input of a recipe, which may be the result of another. Raises MergeError."""
    if item.recipe is None and not is_recipe(item.path):
        return plainly(item)
    return _inner(item, Options(), Policy()).open(item.section)


def computed(source: Source, section: str = "auto", name: str = "") -> StateDict:
    """Give the tensors of a checkpoint as `opened` does; of a recipe's file those that it makes. Raises MergeError."""
    if isinstance(source, (str, Path)) and is_recipe(path := Path(source)):
        return open_input(Input(name or path.stem, path, section))
    return opened(source, section, name)


def _inner(item: Input, options: Options, policy: Policy) -> Inner:
    """Plan the recipe that an input is made by, for a merge with this policy: what it accepts is accepted here too."""
    own = item.recipe or read_recipe(item.path, opening=open_input)
    accept = tuple(dict.fromkeys((*own.policy.accept, *policy.accept)))
    allowed = own.policy.allow_nonfinite or policy.allow_nonfinite
    recipe = whole(replace(own, policy=replace(own.policy, accept=accept, allow_nonfinite=allowed)), open_input)
    folder = Path(tempfile.mkdtemp(prefix="unival-merge-"))
    try:
        path = folder / f"{as_name(item.name).lstrip('.') or 'result'}{_suffix_like(recipe.sources[0])}"
        options = replace(options, shard_size=None, progress=None, stage=None, carry_nonfinite=False)
        return Inner(_checked(recipe, [(recipe, path)], options), item.name)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, MergeError):
            raise MergeError(f"{item.name}, made by {item.path.name}: {error}") from error
        raise


def _suffix_like(first: Input) -> str:
    """The suffix of what is made like an input: empty for a folder."""
    while first.recipe is not None:
        first = first.recipe.sources[0]
    path = located(first.path)
    return "" if path.is_dir() else suffix_like(path)


def _checked(recipe: Recipe, outputs: Sequence[tuple[Recipe, Path]], options: Options | None) -> Plan:
    """Open the inputs, find what happens to every tensor, lay every output out."""
    options = _checked_options(recipe, options)
    if not recipe.inputs:
        check_inputs(recipe, method_named(recipe.method))
    inner: dict[int, Inner] = {
        index: _inner(item, options, recipe.policy)
        for index, item in enumerate(recipe.sources)
        if item.recipe is not None
    }
    opened = {recipe.sources[index].name: made.open(recipe.sources[index].section) for index, made in inner.items()}
    checkpoints = open_inputs(recipe.sources, lambda item: opened[item.name] if item.name in opened else plainly(item))
    if recipe.policy.dequantize:
        checkpoints = [dequantized(checkpoint) for checkpoint in checkpoints]
    labels, found = [source.name for source in recipe.sources], list[Finding]()
    method = method_named(recipe.method)
    stack = restacked(recipe, checkpoints)
    given, checkpoints = checkpoints, cast("list[Checkpoint]", list(stack.inputs))
    rest: dict[str, Any] = {"has_base": recipe.base is not None, "sources": stack.sources, "told": found.append}
    units = plan_for(method, checkpoints, labels, recipe.policy, **rest)
    for finding in found:
        warn(finding)
    parameters = [parameters_for(item, units) for item, _ in outputs]
    merged = merging(method, checkpoints)
    first, tokens = checkpoints[0], dictionary(merged, labels, units)
    specs = {name: Spec(unit.element, unit.shape, unit.name) for name, unit in by_name(units, merged).items()}
    like = replace(with_parts(merged), content=given[0].content)
    beside = sidecars(like, merging(method, given), labels[: len(merged)], units, recipe.policy, stack)
    pairs = (pair for checkpoint in reversed(merged) for pair in checkpoint.metadata.items())
    experts = {name: text for name, text in pairs if name.startswith(OF_EXPERTS)}
    targets: list[Target] = []
    for (item, path), values in zip(outputs, parameters, strict=True):
        ties = {name: specs[name].tie for name in specs}
        # A note that a name is tied to another goes where they are no longer one tensor.
        metadata = {k: to for k, to in first.metadata.items() if k not in ties or ties[k] == ties.get(to, ties[k])}
        metadata.pop(IDENTITY, None)  # how the first input was made, not how this is
        if set(metadata) <= {"format"}:  # some models rebuild themselves from their metadata: it is not added to
            blanks = [" " * len(Digest(options.digest).text())] * len(checkpoints)
            metadata = {"format": "pt", **metadata, IDENTITY: identity(noted(item, inner, blanks, blank=True))}
        metadata = {**experts, **metadata}
        if tokens is not None:  # without it nobody knows what the rows mean
            metadata[DICTIONARY] = json.dumps(tokens)
        rest = {"metadata": metadata, "shard_size": options.shard_size, "sidecars": beside.files}
        layout = lay_out(path, specs, like=like, others=merged[1:], **rest)
        notes = left_out(merged, labels[: len(merged)], entries_kept=layout.like)
        beside_notes = beside.notes if layout.folder else ()
        within = [f"{made.label}: {note}" for made in inner.values() for note in made.plan.targets[0].layout.notes]
        layout = replace(layout, notes=(*within, *stack.notes, *notes, *beside_notes, *layout.notes))
        targets.append(Target(item, values, path, layout))
    found = [*(finding for made in inner.values() for finding in made.plan.findings), *found]
    return Plan(recipe, checkpoints, units, targets, options, found, inner)


def _checked_options(recipe: Recipe, options: Options | None) -> Options:
    """Give the options of a run, with the kind of digest that the recipe has. Raises MergeError for what cannot be."""
    if not isinstance(options, (Options, type(None))):
        raise MergeError(f"options={options!r}: must be merge.Options, as Options(overwrite=True)")
    options = options or Options()
    stored = {kind_of(source.digest) for source in recipe.sources if source.digest}
    if len(stored) > 1:
        raise MergeError(f"the recipe's digests are of several kinds ({', '.join(sorted(stored))}); clear some of them")
    options = replace(options, digest=stored.pop() if stored else options.digest)  # a recipe is checked with its own
    Digest(options.digest)
    if options.threads < 0:
        raise MergeError(f"threads {options.threads}: must be 0 (as many as are useful) or more")
    if options.device != "cpu":
        _check_device(options.device)
    return options


def _check_device(device: str) -> None:
    import torch

    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise MergeError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error


def _refuse_inputs(output: Path, plan: Plan) -> None:
    place = output.resolve()
    files = [file for checkpoint in plan.checkpoints for file in (checkpoint.path, *checkpoint.files)]
    files += [item.path for item in plan.recipe.sources if item.recipe is not None]
    for file in {file.resolve() for file in files}:
        if place == file or place in file.parents:
            raise MergeError(f"{output}: {'is' if place == file else 'holds'} the input {file}; choose another output")
    for inner in plan.inner.values():
        _refuse_inputs(output, inner.plan)


# -- what an output says of itself -----------------------------------------------------------------------------------


def identity(recipe: Recipe) -> str:
    """Give a recipe without paths: the same bytes wherever the inputs lie.

    Digests that are not known yet are blanks of the same length, to be filled in when all is read.
    """
    data = to_json(recipe)
    _without_paths(data)
    return json.dumps({**data, "version": VERSION})


def _without_paths(data: dict[str, Any]) -> None:
    for source in _sources(data):
        del source["path"]
        if "recipe" in source:
            _without_paths(source["recipe"])
    if os.sep in data["policy"].get("tokenizer", ""):
        data["policy"]["tokenizer"] = Path(data["policy"]["tokenizer"]).name


def record(
    target: Target, plan: Plan, digests: Sequence[str], digest: str, nonfinite: Mapping[str, int]
) -> dict[str, Any]:
    """Give what `.recipe.json` holds: the recipe with its inputs' digests, the output's, and where it came from."""
    output = noted_output(target.path, target.layout, digest, nonfinite)
    if plan.findings:  # what the merge was warned of
        output["findings"] = [{"code": item.code, "text": str(item)} for item in plan.findings]
    traced = _traced(noted(target.recipe, plan.inner, digests))
    return {**traced, "output": output, "provenance": provenance(plan.options.command)}


def noted_output(path: Path, layout: Layout, digest: str, nonfinite: Mapping[str, int]) -> dict[str, Any]:
    """Give what a record says of every output: `overwrite` replaces a folder only where it names all files."""
    output: dict[str, Any] = {"file": path.name, "digest": digest, "notes": list(layout.notes)}
    output["nonfinite"] = dict(sorted(nonfinite.items()))
    if layout.folder:
        output["files"] = [*layout.names, *([CARD] if layout.card else [])]
    return output


def provenance(command: str) -> dict[str, str]:
    """Give what made an output: the command line and versions."""
    import torch

    return {
        "command": command,
        "unival-merge": VERSION,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _traced(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON data, with absolute paths."""
    data, words = to_json(recipe), ("first", "base", "union", *(item.name for item in recipe.sources))
    if recipe.policy.tokenizer not in ("", *words):
        data["policy"]["tokenizer"] = str(Path(recipe.policy.tokenizer).resolve())
    for source, item in zip(_sources(data), recipe.sources, strict=True):
        source["path"] = recorded(item.path)
        if item.recipe is not None:
            source["recipe"] = _traced(item.recipe)
    return data


def _sources(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [*([data["base"]] if data["base"] else []), *data["inputs"]]
