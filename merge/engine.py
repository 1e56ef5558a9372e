"""Merges from files to files: check everything, stream once, let the outputs appear."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from merge._version import VERSION
from merge.checkpoint import Checkpoint, open_checkpoint
from merge.digest import DEFAULT, Digest
from merge.errors import MergeError
from merge.files import check_target, replacing, write_text
from merge.recipe import Recipe, describe, parameters_for, share_label, shares, to_json
from merge.state_dict import SHOWN, Unit, plan
from merge.stream import Job, Progress, Settings, Stream
from merge.writing import OutputPlan, Slot, Writer, plan_output, recipe_path


@dataclass(frozen=True)
class Options:
    """How a merge runs; none of it changes a bit of the result.

    Attributes:
        overwrite: replace an existing output.
        threads: workers; 0 means one a core, at most 4.
        device: where whole-tensor arithmetic is done.
        sync: wait until the disk has the output before it takes its name.
        shard_size: largest shard in bytes; the output is then a folder.
        digest: "xxh3_128" (identity) or "sha256".
        command: the command line to note in the recipe.
        progress: called with the number of input bytes read since the last call.
    """

    overwrite: bool = False
    threads: int = 0
    device: str = "cpu"
    sync: bool = True
    shard_size: int | None = None
    digest: str = DEFAULT
    command: str = ""
    progress: Progress | None = None


@dataclass(frozen=True)
class Plan:
    """A merge that has been checked and not begun: what `--dry-run` shows."""

    recipe: Recipe
    checkpoints: Sequence[Checkpoint]
    units: Sequence[Unit]
    outputs: Mapping[Path, OutputPlan]

    @property
    def bytes_read(self) -> int:
        return sum(checkpoint.nbytes for checkpoint in self.checkpoints)


def run(recipe: Recipe, output: str | Path, options: Options | None = None) -> Path:
    """Merge checkpoints into one file or folder, whose layout follows the name of `output`.

        >>> recipe = Recipe("interpolate", (Input("vqa", "vqa.pt"), Input("caption", "caption.pt")),
        ...                 {"ratio": 0.4})                                     # doctest: +SKIP
        >>> run(recipe, "merged.safetensors")                                   # doctest: +SKIP

    Everything is checked before the first tensor is read; the output appears whole or not at all, with its recipe in
    `<output>.recipe.json`. Raises MergeError.
    """
    output = Path(output)
    options = options or Options()
    checked = plan_run(recipe, [(recipe, output)], options)
    _run_plan(checked, [(recipe, output)], options)
    return output


def sweep_to_files(
    recipe: Recipe, points: Sequence[Mapping[str, Any]], folder: str | Path, options: Options | None = None
) -> Path:
    """Write one checkpoint for every set of parameters in `points`, from a single read of the inputs.

    The folder appears whole; `sweep.json` in it lists the files with their shares. Raises MergeError.
    """
    folder = Path(folder)
    options = options or Options()
    check_target(folder, 0, folder=True, overwrite=options.overwrite)
    suffix = point_suffix(recipe)
    recipes = [recipe.with_parameters(**point) for point in points]
    names = [point_name(item) + suffix for item in recipes]
    if len(set(names)) < len(names):
        raise MergeError(f"{folder}: two points have the same shares: {', '.join(names)}")
    checked = plan_run(
        recipe, [(item, folder / name) for item, name in zip(recipes, names, strict=True)], options, new=True
    )
    size = sum(output.size for output in checked.outputs.values())
    with replacing(folder, size, folder=True, overwrite=options.overwrite, sync=options.sync) as partial:
        inner = [(item, partial / name) for item, name in zip(recipes, names, strict=True)]
        moved = replace(checked, outputs={path: checked.outputs[folder / path.name] for _, path in inner})
        digests = _run_plan(moved, inner, replace(options, overwrite=False, sync=False))
        rows = [
            {"file": name, "shares": shares(item), "parameters": dict(item.parameters), "digest": digest}
            for name, item, digest in zip(names, recipes, digests, strict=True)
        ]
        index = {"recipe": to_json(recipe), "points": rows, "provenance": provenance(options)}
        (partial / "sweep.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return folder


def point_name(recipe: Recipe) -> str:
    """A file name that states the shares: `0.20-vqa_0.80-caption`."""
    parts = shares(recipe)
    if parts is None:
        return "".join(c if c.isalnum() or c in "._-" else "-" for c in json.dumps(dict(recipe.parameters)))
    return "_".join(share_label({name: value}).replace(" ", "-") for name, value in parts.items())


def point_suffix(recipe: Recipe) -> str:
    """Sweeps write the format of the first input; folders become single safetensors files."""
    suffix = recipe.sources[0].path.suffix
    return suffix if suffix in (".pt", ".pth", ".bin", ".ckpt") else ".safetensors"


# -- planning --------------------------------------------------------------------------------------------------------


def plan_run(recipe: Recipe, outputs: Sequence[tuple[Recipe, Path]], options: Options, *, new: bool = False) -> Plan:
    """Open and check everything that can be checked from headers (and the values of integer tensors).

    `new` says that the outputs' folder is still to be made. Raises MergeError with every problem found.
    """
    checkpoints = [open_checkpoint(source.path, source.section) for source in recipe.sources]
    inputs = {file.resolve() for checkpoint in checkpoints for file in (checkpoint.path, *checkpoint.files)}
    for item, path in outputs:
        if path.resolve() in inputs or any(path.resolve() in file.parents for file in inputs):
            raise MergeError(f"{path}: the output is an input; choose another name")
        parameters_for(item, [])
    units = plan(checkpoints, [source.name for source in recipe.sources], recipe.policy)
    slots = {name: Slot(unit.dtype, unit.shape, unit.name) for unit in units for name in unit.names}
    plans = {path: _plan_one(item, checkpoints[0], slots, path, options, "") for item, path in outputs}
    if not new:
        for path, output in plans.items():
            check_target(path, output.size, folder=output.folder, overwrite=options.overwrite)
    return Plan(recipe, checkpoints, units, plans)


def _plan_one(
    recipe: Recipe,
    first: Checkpoint,
    slots: Mapping[str, Slot],
    path: Path,
    options: Options,
    digests: Sequence[str] | str,
) -> OutputPlan:
    metadata = dict(first.metadata)
    if set(metadata) <= {"format"}:  # some models rebuild themselves from their metadata: it is not added to
        metadata = {"format": "pt", "unival_merge": _identity(recipe, options, digests)}
    return plan_output(path, slots, like=first, metadata=metadata, shard_size=options.shard_size)


def _identity(recipe: Recipe, options: Options, digests: Sequence[str] | str) -> str:
    """The recipe without paths: the same bytes wherever the inputs lie. Unknown digests are blanks of equal length."""
    data = to_json(recipe)
    blank = Digest(options.digest).text()
    sources = [data["base"], *data["inputs"]] if data["base"] else data["inputs"]
    for index, source in enumerate(sources):
        del source["path"]
        source["digest"] = digests[index] if digests else " " * len(blank)
    return json.dumps({**data, "version": VERSION})


# -- streaming -------------------------------------------------------------------------------------------------------


def _run_plan(checked: Plan, outputs: Sequence[tuple[Recipe, Path]], options: Options) -> list[str]:
    """Stream a checked plan into its outputs; returns the digest of each."""
    names = [name for unit in checked.units for name in unit.names if unit.kind == "merge"]
    with ExitStack() as stack:
        jobs: list[Job] = []
        for recipe, path in outputs:
            output = checked.outputs[path]
            partial = stack.enter_context(
                replacing(path, output.size, folder=output.folder, overwrite=options.overwrite, sync=options.sync)
            )
            writer = Writer(output, partial)
            stack.callback(writer.release)
            jobs.append(Job(recipe, parameters_for(recipe, names), writer, Digest(options.digest)))
        sources = [checkpoint.entries for checkpoint in checked.checkpoints]
        settings = Settings(options.threads, options.device, options.digest, options.progress)
        digests = Stream(sources, checked.units, jobs, settings).run()
        _refuse(checked, jobs, digests)
        for job, (_, path) in zip(jobs, outputs, strict=True):
            _finish(checked, job, path, options, digests)
    for job, (_, path) in zip(jobs, outputs, strict=True):
        record = _record(job, path, options, digests, checked.outputs[path].notes)
        write_text(recipe_path(path), json.dumps(record, indent=2) + "\n", overwrite=True)
    return [job.digest.text() for job in jobs]


def _finish(checked: Plan, job: Job, path: Path, options: Options, digests: Sequence[str]) -> None:
    slots = {name: Slot(unit.dtype, unit.shape, unit.name) for unit in checked.units for name in unit.names}
    job.writer.rewrite(_plan_one(job.recipe, checked.checkpoints[0], slots, path, options, digests))
    job.writer.close()


def _refuse(checked: Plan, jobs: Sequence[Job], digests: Sequence[str]) -> None:
    for source, digest in zip(checked.recipe.sources, digests, strict=True):
        if source.digest and source.digest != digest:
            raise MergeError(
                f"{source.path}: {source.name} has changed since the recipe was written: its digest was "
                f"{source.digest}, it is {digest}; clear the digest in the recipe to accept it"
            )
    for job in jobs:
        if job.nonfinite and not job.recipe.policy.allow_nonfinite:
            worst = sorted(job.nonfinite.items(), key=lambda item: -item[1])[:SHOWN]
            listed = ", ".join(f"{count} in {name}" for name, count in worst)
            raise MergeError(
                f"{describe(job.recipe)}: infinite or NaN values in {len(job.nonfinite)} tensors ({listed}); "
                "pass --allow-nonfinite to write them"
            )


def _record(job: Job, path: Path, options: Options, digests: Sequence[str], notes: Sequence[str]) -> dict[str, Any]:
    """What `<output>.recipe.json` holds: the recipe with the inputs' digests, the output's, and where it came from."""
    data = to_json(job.recipe)
    sources = [data["base"], *data["inputs"]] if data["base"] else data["inputs"]
    for source, item, digest in zip(sources, job.recipe.sources, digests, strict=True):
        source["path"], source["digest"] = str(item.path.resolve()), digest
    output = {"file": path.name, "digest": job.digest.text(), "notes": list(notes), "nonfinite": job.nonfinite}
    return {**data, "output": output, "provenance": provenance(options)}


def provenance(options: Options) -> dict[str, str]:
    """Versions and the command, as noted in recipes."""
    return {
        "command": options.command,
        "unival-merge": VERSION,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
