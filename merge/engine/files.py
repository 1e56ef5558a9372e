"""What a merge to files will do, checked before it is begun: `plan_run`, `plan_sweep`; and what its recipes say."""

# What users give is checked, whatever its type is said to be.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from merge._version import VERSION
from merge.checkpoint.atomic import check_target
from merge.checkpoint.digest import DEFAULT, Digest, kind_of
from merge.checkpoint.formats.format import DICTIONARY, Layout, path_of
from merge.checkpoint.formats.tensors import Spec
from merge.checkpoint.hub import recorded
from merge.checkpoint.open import Checkpoint
from merge.checkpoint.owned import CARD
from merge.checkpoint.parts import with_parts
from merge.checkpoint.save import lay_out, suffix_like
from merge.checkpoint.scaled import dequantized
from merge.errors import MergeError
from merge.plan.findings import Finding, warn
from merge.plan.paired import merging, plan_for
from merge.plan.sidecars import sidecars
from merge.plan.summary import left_out
from merge.plan.units import Unit, by_name, dictionary
from merge.recipe.inputs import open_inputs, restacked
from merge.recipe.json import read_recipe, to_json
from merge.recipe.parameters import check_inputs, method_named, parameters_for
from merge.recipe.recipe import Recipe
from merge.recipe.shares import SHARES, as_name, describe, file_stem

MOST_FILES = 10_000  # of a sweep
OF_EXPERTS = "expert."  # metadata of such names are kept from all inputs, others from the first one


@dataclass(frozen=True)
class Options:
    """How a merge runs; none of it changes a bit of the result.

    Attributes:
        overwrite: replace an existing output.
        threads: workers; 0 means one for two cores, with several outputs or checksums one a core, at most 4; one a core
            for methods that need whole tensors, as far as memory reaches.
        device: where whole-tensor arithmetic is done.
        sync: wait until the disk has the output before it takes its name.
        shard_size: largest shard in bytes; the output is then a folder.
        digest: "xxh3_128" (identity) or "sha256"; a recipe that holds digests is checked with its own.
        command: the command line to note in the recipe.
        carry_nonfinite: accept infinite and NaN values that the inputs have, and refuse those that the merge makes.
        progress: called with the number of input bytes read since the last call.
        stage: called when a pass over the inputs begins, with what it is for and the bytes it reads at most.
    """

    overwrite: bool = False
    threads: int = 0
    device: str = "cpu"
    sync: bool = True
    shard_size: int | None = None
    digest: str = DEFAULT
    command: str = ""
    carry_nonfinite: bool = False
    progress: Callable[[int], object] | None = None
    stage: Callable[[str, int], object] | None = None


@dataclass(frozen=True)
class Target:
    """One output of a merge: its recipe, every unit's parameters, where it will lie, how it is laid out.

    `found` is what a survey of the inputs says of it, when that was made.
    """

    recipe: Recipe
    parameters: Mapping[str, Mapping[str, Any]]
    path: Path
    layout: Layout
    found: Sequence[str] = ()


@dataclass(frozen=True, repr=False)
class Plan:
    """A merge that has been checked and not begun: what `--dry-run` shows."""

    recipe: Recipe
    checkpoints: Sequence[Checkpoint]
    units: Sequence[Unit]
    targets: Sequence[Target]
    options: Options
    findings: Sequence[Finding] = ()

    def __repr__(self) -> str:
        count = "1 file" if len(self.targets) == 1 else f"{len(self.targets)} files"
        return f"Plan({describe(self.recipe)}; {len(self.units)} tensors to {count}, {self.bytes_written:,} bytes)"

    @property
    def bytes_read(self) -> int:
        """Bytes of all inputs' tensors."""
        return sum(checkpoint.nbytes for checkpoint in self.checkpoints)

    @property
    def bytes_written(self) -> int:
        """Bytes of all outputs."""
        return sum(target.layout.size for target in self.targets)

    @property
    def reasons(self) -> dict[str, list[str]]:
        """Tensors that the policy decided, by what it decided: "picked from vqa", "missing: union", "by row"."""
        found: dict[str, list[str]] = {}
        for unit in self.units:
            if unit.why:
                found.setdefault(unit.why, []).extend(unit.names)
        return found


def plan_run(recipe: Recipe | str | Path, output: str | Path, options: Options | None = None) -> Plan:
    """Check a merge as far as headers (and the values of integer tensors) tell. Raises MergeError with all problems."""
    recipe = recipe_of(recipe)
    plan = _checked(recipe, [(recipe, path_of(output, "the output"))], options)
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
    end = suffix_like(recipe.sources[0].path)
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
    _refuse_inputs(folder, plan.checkpoints)
    check_target(folder, plan.bytes_written, folder=True, overwrite=plan.options.overwrite)
    return plan


def recipe_of(recipe: Recipe | str | Path) -> Recipe:
    """Give the recipe, read where its path is given. Raises MergeError."""
    if isinstance(recipe, (str, Path)):
        return read_recipe(recipe)
    if not isinstance(recipe, Recipe):
        raise MergeError(f"a {type(recipe).__name__} is no recipe: give a merge.Recipe or the path of one's file")
    return recipe


def _checked(recipe: Recipe, outputs: Sequence[tuple[Recipe, Path]], options: Options | None) -> Plan:
    """Open the inputs, find what happens to every tensor, lay every output out."""
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
    if not recipe.inputs:
        check_inputs(recipe, method_named(recipe.method))
    checkpoints = open_inputs(recipe.sources)
    for _, path in outputs:
        _refuse_inputs(path, checkpoints)
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
    noted = {name: text for name, text in pairs if name.startswith(OF_EXPERTS)}
    targets: list[Target] = []
    for (item, path), values in zip(outputs, parameters, strict=True):
        ties = {name: specs[name].tie for name in specs}
        # A note that a name is tied to another goes where they are no longer one tensor.
        metadata = {k: to for k, to in first.metadata.items() if k not in ties or ties[k] == ties.get(to, ties[k])}
        if set(metadata) <= {"format"}:  # some models rebuild themselves from their metadata: it is not added to
            metadata = {"format": "pt", **metadata, "unival_merge": identity(item, options.digest, None)}
        metadata = {**noted, **metadata}
        if tokens is not None:  # without it nobody knows what the rows mean
            metadata[DICTIONARY] = json.dumps(tokens)
        rest = {"metadata": metadata, "shard_size": options.shard_size, "sidecars": beside.files}
        layout = lay_out(path, specs, like=like, others=merged[1:], **rest)
        notes = left_out(merged, labels[: len(merged)], entries_kept=layout.like)
        beside_notes = beside.notes if layout.folder else ()
        layout = replace(layout, notes=(*stack.notes, *notes, *beside_notes, *layout.notes))
        targets.append(Target(item, values, path, layout))
    return Plan(recipe, checkpoints, units, targets, options, found)


def _check_device(device: str) -> None:
    import torch

    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise MergeError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error


def _refuse_inputs(output: Path, checkpoints: Sequence[Checkpoint]) -> None:
    whole = output.resolve()
    for file in {file.resolve() for checkpoint in checkpoints for file in (checkpoint.path, *checkpoint.files)}:
        if whole == file or whole in file.parents:
            raise MergeError(f"{output}: {'is' if whole == file else 'holds'} the input {file}; choose another output")


# -- what an output says of itself -----------------------------------------------------------------------------------


def identity(recipe: Recipe, algorithm: str, digests: Sequence[str] | None) -> str:
    """Give the recipe without paths: the same bytes wherever the inputs lie.

    Digests that are not known yet are blanks of the same length, to be filled in when all is read.
    """
    blank = " " * len(Digest(algorithm).text())
    data = _traced(recipe, digests or [blank] * len(recipe.sources))
    for source in _sources(data):
        del source["path"]
    if os.sep in recipe.policy.tokenizer:
        data["policy"]["tokenizer"] = Path(recipe.policy.tokenizer).name
    return json.dumps({**data, "version": VERSION})


def record(
    target: Target, plan: Plan, digests: Sequence[str], digest: str, nonfinite: Mapping[str, int]
) -> dict[str, Any]:
    """Give what `.recipe.json` holds: the recipe with its inputs' digests, the output's, and where it came from."""
    output = noted_output(target.path, target.layout, digest, nonfinite)
    if plan.findings:  # what the merge was warned of
        output["findings"] = [{"code": item.code, "text": str(item)} for item in plan.findings]
    return {**_traced(target.recipe, digests), "output": output, "provenance": provenance(plan.options.command)}


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


def _traced(recipe: Recipe, digests: Sequence[str]) -> dict[str, Any]:
    """The recipe as JSON data, with absolute paths and the digests of its inputs."""
    data, words = to_json(recipe), ("first", "base", "union", *(item.name for item in recipe.sources))
    if recipe.policy.tokenizer not in ("", *words):
        data["policy"]["tokenizer"] = str(Path(recipe.policy.tokenizer).resolve())
    for source, item, digest in zip(_sources(data), recipe.sources, digests, strict=True):
        source["path"], source["digest"] = recorded(item.path), digest
    return data


def _sources(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [*([data["base"]] if data["base"] else []), *data["inputs"]]
