"""Merges from files to files: check everything, stream once, let the outputs appear."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from merge._version import VERSION
from merge.checkpoint.atomic import check_target, replacing
from merge.checkpoint.digest import DEFAULT, Digest
from merge.checkpoint.formats.format import DICTIONARY, Layout
from merge.checkpoint.formats.tensors import Spec
from merge.checkpoint.open import Checkpoint, open_checkpoint
from merge.checkpoint.save import Writer, lay_out, recipe_path, suffix_like
from merge.engine.stream import Job, Stream
from merge.errors import MergeError
from merge.plan.units import SHOWN, Unit, by_name, dictionary, plan
from merge.recipe.recipe import SHARES, Recipe, describe, parameters_for, share_label, shares, to_json


@dataclass(frozen=True)
class Options:
    """How a merge runs; none of it changes a bit of the result.

    Attributes:
        overwrite: replace an existing output.
        threads: workers; 0 means one for two cores, with several outputs one a core, at most 4.
        device: where whole-tensor arithmetic is done.
        sync: wait until the disk has the output before it takes its name.
        shard_size: largest shard in bytes; the output is then a folder.
        digest: "xxh3_128" (identity) or "sha256"; a recipe that holds digests is checked with its own.
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
    progress: Callable[[int], object] | None = None


@dataclass(frozen=True)
class Target:
    """One output of a merge: its recipe, where it will lie, how it is laid out."""

    recipe: Recipe
    path: Path
    layout: Layout


@dataclass(frozen=True)
class Plan:
    """A merge that has been checked and not begun: what `--dry-run` shows."""

    recipe: Recipe
    checkpoints: Sequence[Checkpoint]
    units: Sequence[Unit]
    targets: Sequence[Target]
    options: Options

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


def run(recipe: Recipe, output: str | Path, options: Options | None = None) -> Path:
    """Merge checkpoints into one file or folder, whose layout follows the name of `output`.

        >>> vqa, caption = Input("vqa", Path("vqa.pt")), Input("caption", Path("caption.pt"))       # doctest: +SKIP
        >>> run(Recipe("interpolate", (vqa, caption), {"ratio": 0.4}), "merged.safetensors")        # doctest: +SKIP

    Everything is checked before the first tensor is read; the output appears whole or not at all, with its recipe in
    `<output>.recipe.json`. Raises MergeError.
    """
    checked = plan_run(recipe, output, options)
    (target,), options = checked.targets, checked.options
    keeping: dict[str, Any] = {"folder": target.layout.folder, "overwrite": options.overwrite, "sync": options.sync}
    note_path = recipe_path(target.path)
    # Killed between the two renames, an output has no recipe; it never has that of another merge.
    if options.overwrite:
        keeping["before"] = lambda: note_path.unlink(missing_ok=True)
    with (
        replacing(note_path, 0, folder=False, overwrite=True, sync=options.sync) as note,  # takes its name last
        replacing(target.path, checked.bytes_written, **keeping) as partial,
    ):
        (record,) = _stream(checked, [partial])
        note.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return target.path


def sweep_to_files(
    recipe: Recipe, points: Sequence[Mapping[str, Any]], folder: str | Path, options: Options | None = None
) -> Path:
    """Write one checkpoint for every set of parameters in `points`, from a single read of the inputs.

    The folder appears whole; `sweep.json` in it lists the files with their shares. Raises MergeError.
    """
    folder = Path(folder)
    checked = plan_sweep(recipe, points, folder, options)
    options = checked.options
    with replacing(
        folder, checked.bytes_written, folder=True, overwrite=options.overwrite, sync=options.sync
    ) as partial:
        files = [partial / target.path.name for target in checked.targets]
        records = _stream(checked, files)
        for file, record in zip(files, records, strict=True):
            recipe_path(file).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        rows = [
            {"file": file.name, "shares": shares(target.recipe), "parameters": record["parameters"], **record["output"]}
            for file, target, record in zip(files, checked.targets, records, strict=True)
        ]
        common = {key: records[0][key] for key in ("method", "base", "inputs", "policy", "provenance")}
        (partial / "sweep.json").write_text(json.dumps({**common, "points": rows}, indent=2) + "\n", encoding="utf-8")
    return folder


# -- planning --------------------------------------------------------------------------------------------------------


def plan_run(recipe: Recipe, output: str | Path, options: Options | None = None) -> Plan:
    """Check a merge as far as headers (and the values of integer tensors) tell. Raises MergeError with all problems."""
    checked = _plan(recipe, [(recipe, Path(output))], options or Options())
    (target,) = checked.targets
    check_target(target.path, target.layout.size, folder=target.layout.folder, overwrite=checked.options.overwrite)
    check_target(recipe_path(target.path), 0, folder=False, overwrite=True)
    return checked


def plan_sweep(
    recipe: Recipe, points: Sequence[Mapping[str, Any]], folder: Path, options: Options | None = None
) -> Plan:
    """Check a sweep like `plan_run`; every point is named by its shares, in the format of the first input."""
    if not points:
        raise MergeError(f"{folder}: a sweep needs at least one point")
    recipes = [recipe.with_parameters(**point) for point in points]
    for item in recipes:
        parameters_for(item, [])
    end = suffix_like(recipe.sources[0].path)
    names = [_point_name(item) + _settings(point, points) + end for item, point in zip(recipes, points, strict=True)]
    if len(set(names)) < len(names):
        raise MergeError(f"{folder}: two points have the same shares: {', '.join(names)}")
    outputs = [(item, folder / name) for item, name in zip(recipes, names, strict=True)]
    options = options or Options()
    if options.shard_size is not None:
        raise MergeError("a sweep writes one file a point: --shard-size is for single merges")
    checked = _plan(recipe, outputs, options)
    check_target(folder, checked.bytes_written, folder=True, overwrite=checked.options.overwrite)
    _refuse_inputs(folder, checked.checkpoints)
    return checked


def _point_name(recipe: Recipe) -> str:
    """A file name that states the shares: `0.20-vqa_0.80-caption`."""
    parts = shares(recipe)
    if parts is None:
        return _as_name(json.dumps(dict(recipe.parameters)))
    return "_".join(share_label({name: value}).replace(" ", "-") for name, value in parts.items())


def _settings(point: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> str:
    """What else tells a point from the others: `_density-0.2`."""
    varied = [key for key in point if any(other.get(key) != point[key] for other in points)]
    return "".join(f"_{key}-{_as_name(str(point[key]))}" for key in varied if key not in SHARES)


def _as_name(text: str) -> str:
    """A text without what file names cannot hold."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in text)


def _plan(recipe: Recipe, outputs: Sequence[tuple[Recipe, Path]], options: Options) -> Plan:
    options = replace(options, digest=_algorithm(recipe, options))
    _check_options(options)
    checkpoints = [open_checkpoint(source.path, source.section) for source in recipe.sources]
    for _, path in outputs:
        _refuse_inputs(path, checkpoints)
    units = plan(
        checkpoints, [source.name for source in recipe.sources], recipe.policy, has_base=recipe.base is not None
    )
    for item, _ in outputs:
        parameters_for(item, units)
    draft = Plan(recipe, checkpoints, units, (), options)
    return replace(draft, targets=[Target(item, path, _layout(draft, item, path)) for item, path in outputs])


def _refuse_inputs(output: Path, checkpoints: Sequence[Checkpoint]) -> None:
    whole = output.resolve()
    for file in {file.resolve() for checkpoint in checkpoints for file in (checkpoint.path, *checkpoint.files)}:
        if whole == file or whole in file.parents:
            raise MergeError(f"{output}: {'is' if whole == file else 'holds'} the input {file}; choose another output")


def _algorithm(recipe: Recipe, options: Options) -> str:
    """The digest to compute: that of the digests which the recipe holds, else the one asked for."""
    stored = {source.digest.partition(":")[0] for source in recipe.sources if source.digest}
    if len(stored) > 1:
        raise MergeError(f"the recipe's digests are of several kinds ({', '.join(sorted(stored))}); clear some of them")
    return stored.pop() if stored else options.digest


def _check_options(options: Options) -> None:
    Digest(options.digest)
    if options.threads < 0:
        raise MergeError(f"threads {options.threads}: must be 0 (as many as are useful) or more")
    try:
        torch.zeros(1, device=options.device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise MergeError(f"device {options.device!r} cannot be used here: {str(error).splitlines()[0]}") from error


def _layout(plan: Plan, recipe: Recipe, path: Path) -> Layout:
    first = plan.checkpoints[0]
    units = by_name(plan.units, plan.checkpoints)
    specs = {name: Spec(unit.dtype, unit.shape, unit.name) for name, unit in units.items()}
    tokens = dictionary(plan.checkpoints, [source.name for source in recipe.sources], plan.units)
    metadata = dict(first.metadata)
    if set(metadata) <= {"format"}:  # some models rebuild themselves from their metadata: it is not added to
        metadata = {"format": "pt", **metadata, "unival_merge": _identity(recipe, plan.options.digest, None)}
    if tokens is not None:  # without it nobody knows what the rows mean
        metadata[DICTIONARY] = json.dumps(tokens)
    return lay_out(path, specs, like=first, metadata=metadata, shard_size=plan.options.shard_size)


def _identity(recipe: Recipe, algorithm: str, digests: Sequence[str] | None) -> str:
    """The recipe without paths: the same bytes wherever the inputs lie. Unknown digests are blanks of equal length."""
    blank = " " * len(Digest(algorithm).text())
    data = _traced(recipe, digests or [blank] * len(recipe.sources))
    for source in _sources(data):
        del source["path"]
    return json.dumps({**data, "version": VERSION})


def _quoted(text: str) -> bytes:
    """A text as it stands inside a JSON header."""
    return json.dumps(text, ensure_ascii=False).encode()


def _traced(recipe: Recipe, digests: Sequence[str]) -> dict[str, Any]:
    """The recipe as JSON data, with absolute paths and the digests of its inputs."""
    data = to_json(recipe)
    for source, item, digest in zip(_sources(data), recipe.sources, digests, strict=True):
        source["path"], source["digest"] = str(item.path.resolve()), digest
    return data


def _sources(data: Mapping[str, Any]) -> list[dict[str, str]]:
    return [*([data["base"]] if data["base"] else []), *data["inputs"]]


# -- streaming -------------------------------------------------------------------------------------------------------


def _stream(checked: Plan, partials: Sequence[Path]) -> list[dict[str, Any]]:
    """Stream a checked plan into files that nobody sees yet; returns what each output's `.recipe.json` holds.

    Raises MergeError where an input has changed since its recipe was written, and for infinite or NaN results.
    """
    options = checked.options
    jobs: list[Job] = []
    try:
        for target, partial in zip(checked.targets, partials, strict=True):
            writer = Writer(target.layout, partial)
            jobs.append(
                Job(target.recipe, parameters_for(target.recipe, checked.units), writer, Digest(options.digest))
            )
        sources = [checkpoint.entries for checkpoint in checked.checkpoints]
        digests = Stream(sources, checked.units, jobs, options).run()
        _refuse_changed(checked.recipe, digests)
        _refuse_nonfinite(jobs)
        for job, target in zip(jobs, checked.targets, strict=True):
            blank, known = (_identity(target.recipe, options.digest, found) for found in (None, digests))
            job.writer.fill_in(_quoted(blank), _quoted(known))
            job.writer.close()
    finally:
        for job in jobs:
            job.writer.release()
    return [_record(job, target, options, digests) for job, target in zip(jobs, checked.targets, strict=True)]


def _refuse_changed(recipe: Recipe, digests: Sequence[str]) -> None:
    changed = [
        f"{source.path} ({source.name}) has changed since the recipe was written: its digest was {source.digest}, "
        f"it is {digest}"
        for source, digest in zip(recipe.sources, digests, strict=True)
        if source.digest and source.digest != digest
    ]
    if changed:
        raise MergeError("; ".join([*changed, "clear the digest in the recipe to accept it"]))


def _refuse_nonfinite(jobs: Sequence[Job]) -> None:
    for job in jobs:
        if job.nonfinite and not job.recipe.policy.allow_nonfinite:
            worst = sorted(job.nonfinite.items(), key=lambda item: (-item[1], item[0]))[:SHOWN]
            listed = ", ".join(f"{count} in {name}" for name, count in worst)
            raise MergeError(
                f"{describe(job.recipe)}: infinite or NaN values in {len(job.nonfinite)} tensors ({listed}); "
                "pass --allow-nonfinite to write them"
            )


def _record(job: Job, target: Target, options: Options, digests: Sequence[str]) -> dict[str, Any]:
    """The recipe with the inputs' digests, the output's, and where it came from."""
    output = {
        "file": target.path.name,
        "digest": job.digest.text(),
        "notes": list(target.layout.notes),
        "nonfinite": dict(sorted(job.nonfinite.items())),
    }
    provenance = {
        "command": options.command,
        "unival-merge": VERSION,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    return {**_traced(target.recipe, digests), "output": output, "provenance": provenance}
