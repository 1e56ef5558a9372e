"""Merges from files to files in one pass: any number of outputs, memory bounded by the largest tensor.

`run` and `sweep_to_files` check everything (`merge.engine.files`), call `stream`, and let the outputs appear. `stream`
starts the workers and finishes the files. Every worker, `work`, takes the next tensor, or several that lie side by side
(`merge.engine.stretches`), and block by block reads the inputs, hashes them, computes all results and writes them at
their planned places. A block stays in the core's cache
from the read to the write, and while one thread waits for the disk another computes: that is all the overlap there is,
and no queue is needed.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.checkpoint.atomic import replacing
from merge.checkpoint.digest import Digest
from merge.checkpoint.formats.tensors import raw_bytes
from merge.checkpoint.open import SHOWN
from merge.checkpoint.owned import CARD, SWEEP, recipe_path
from merge.checkpoint.save import Writer
from merge.engine.card import card
from merge.engine.files import identity, plan_run, plan_sweep, record
from merge.engine.inner import noted
from merge.engine.planned import Options, Plan, Target
from merge.engine.reading import BLOCK, Buffers, Reading, reader_of
from merge.engine.stretches import Contents, parts, stretches
from merge.engine.summary import summary
from merge.engine.workers import keep_memory, workers_for
from merge.errors import MergeError
from merge.plan.policy import dtype_named
from merge.plan.units import Unit
from merge.recipe.parameters import method_named
from merge.recipe.recipe import Recipe
from merge.recipe.shares import describe, shares

if TYPE_CHECKING:
    from torch import Tensor

TOGETHER = 16 << 20  # bytes of the blocks of all inputs: of many, smaller blocks are read, so that memory stays bounded


def run(recipe: Recipe | str | Path, output: str | Path, options: Options | None = None) -> Path:
    """Merge checkpoints into one file or folder, whose layout follows the name of `output`.

        >>> vqa, caption = Input("vqa", "vqa.pt"), Input("caption", "caption.pt")                   # doctest: +SKIP
        >>> run(Recipe("interpolate", (vqa, caption), {"ratio": 0.4}), "merged.safetensors")        # doctest: +SKIP

    `recipe` may be the path of a recipe's file. Everything is checked before the first tensor is read; the output
    appears whole or not at all, with its recipe in `<output>.recipe.json`. Raises MergeError.
    """
    plan = plan_run(recipe, output, options)
    write(plan)
    return plan.targets[0].path


def write(plan: Plan) -> dict[str, Any]:
    """Make the file or folder of a plan; gives what its `.recipe.json` holds. Raises MergeError."""
    (target,), options = plan.targets, plan.options
    kind: dict[str, Any] = {"folder": target.layout.folder, "copied": target.layout.copied, "recipe": True}
    kind |= {"overwrite": options.overwrite, "sync": options.sync}
    with replacing(target.path, plan.bytes_written, **kind) as partial:
        (recorded,) = stream(plan, [partial])
        if target.layout.card:
            parts = shares(target.recipe) or {}
            text = card(target.path.name, target.layout.names, describe(target.recipe), parts, recorded)
            (partial / CARD).write_text(text, encoding="utf-8")
        recipe_path(partial).write_text(json.dumps(recorded, indent=2) + "\n", encoding="utf-8")
    return recorded


def sweep_to_files(
    recipe: Recipe | str | Path,
    points: Sequence[Mapping[str, Any]],
    folder: str | Path,
    options: Options | None = None,
) -> Path:
    """Write one checkpoint for every set of parameters in `points`, from a single read of the inputs.

    The folder appears whole; `sweep.json` in it lists the files with their shares. Raises MergeError.
    """
    write_sweep(plan_sweep(recipe, points, folder, options))
    return Path(folder)


def write_sweep(plan: Plan) -> dict[str, Any]:
    """Make the folder of a plan's checkpoints; gives what its `sweep.json` holds. Raises MergeError."""
    folder, options = plan.targets[0].path.parent, plan.options
    with replacing(folder, plan.bytes_written, folder=True, overwrite=options.overwrite, sync=options.sync) as partial:
        files = [partial / target.path.name for target in plan.targets]
        records = stream(plan, files)
        rows: list[dict[str, Any]] = []
        for file, target, recorded in zip(files, plan.targets, records, strict=True):
            recipe_path(file).write_text(json.dumps(recorded, indent=2) + "\n", encoding="utf-8")
            told = {"shares": shares(target.recipe), "parameters": recorded["parameters"]}
            made = {key: value for key, value in recorded["output"].items() if key != "summary"}
            rows.append({"file": file.name, **told, **made})
        index = {key: records[0][key] for key in ("method", "base", "inputs", "policy", "provenance")}
        index |= {"summary": records[0]["output"]["summary"], "points": rows}
        (partial / SWEEP).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return index


def stream(plan: Plan, partials: Sequence[Path]) -> list[dict[str, Any]]:
    """Read the inputs once and write all outputs of a plan into files that nobody sees yet.

    Returns what each output's `.recipe.json` holds. Raises MergeError where an input has changed since its recipe was
    written, and for infinite or NaN results.
    """
    import torch  # when all is planned: what is wrong with names and shapes is told before

    if method_named(plan.recipe.method).survey is not None:
        from merge.engine.survey import surveyed

        plan = surveyed(plan)
    options, outputs = plan.options, list[_Output]()
    keep_memory()
    before = torch.get_num_threads()
    try:
        for target, partial in zip(plan.targets, partials, strict=True):
            outputs.append(_Output(target, Writer(target.layout, partial), Digest(options.digest)))
        job = _Pass(plan, outputs)
        count = workers_for(plan)
        logging.getLogger(__name__).info("%s, workers: %d", plan, count)
        with ThreadPoolExecutor(count) as pool:
            workers = [pool.submit(work, job) for _ in range(count)]
            try:
                for worker in workers:
                    worker.result()
            except BaseException:
                job.stop = True  # the others leave after their block
                raise
        digests = job.finish()
        for inner in plan.inner.values():
            inner.finish()
        _refuse_changed(plan, digests)
        for output in outputs:
            output.refuse_nonfinite(options.carry_nonfinite)
            told = [noted(output.target.recipe, plan.inner, digests, blank=blank) for blank in (True, False)]
            output.writer.fill_in(*(json.dumps(identity(one), ensure_ascii=False).encode() for one in told))
            output.writer.close()
    finally:
        torch.set_num_threads(before)
        for output in outputs:
            output.writer.release()
    records = [record(item.target, plan, digests, item.digest.text(), item.nonfinite) for item in outputs]
    for recorded, target in zip(records, plan.targets, strict=True):
        recorded["output"]["summary"] = [*summary(plan), *target.found]
    return records


def work(job: _Pass) -> None:
    """Take the next tensors until none is left: read them of every input, compute and write them for every output."""
    import torch

    from merge.engine.kernel import merged

    torch.set_num_threads(1)  # of this thread: the workers are the parallelism
    buffers = Buffers(job.block)
    recipe, outputs, options = job.plan.recipe, job.outputs, job.plan.options
    method = method_named(recipe.method)
    try:
        while units := job.next_units():
            unit = units[0]  # what is done to it is done to all of them
            whole = (unit.kind == "merge" and not method.elementwise) or unit.assembly is not None
            size = unit.element.itemsize
            numel = sum(one.nbytes for one in units) // size  # bytes, where several elements share one
            step = max(1, numel if whole else job.block // size)
            names = [one.names for one in units]
            most = sys.maxsize if whole else step
            readers = [job.readers(index, names, most, buffers) for index in range(len(job.sources))]
            used = [reader_of(unit.name, readers[index]) for index in unit.sources]
            distinct = list(dict.fromkeys(used))  # what an expert lacks is the base's: one reader, one turn
            points = [output.target.parameters.get(unit.name, {}) for output in outputs]
            hashes = [Contents(output.digest.start, [one.nbytes for one in units]) for output in outputs]
            away = options.device != "cpu" and unit.kind != "copy"
            for start in range(0, numel, step):
                if job.stop:
                    return
                if whole:
                    read = {reader: reader.block(reader.numel).view(reader.entry.shape) for reader in distinct}
                else:
                    read = {reader: reader.block(min(start + step, numel)) for reader in distinct}
                tensors = [read[reader].to(options.device) if away else read[reader] for reader in used]
                results = merged(unit, tensors, method, points, recipe.policy)
                for output, content, (result, count) in zip(outputs, hashes, results, strict=True):
                    result = result.cpu() if away else result
                    if count:
                        output.note_nonfinite(units, start, result, tensors if options.carry_nonfinite else ())
                    data = raw_bytes(result)
                    content.update(data)
                    output.writer.write(unit.names, start * size, data)
            for index, mine in enumerate(readers):
                job.note_digests(index, mine)
            for output, content in zip(outputs, hashes, strict=True):
                for one, digest in zip(units, content.hexdigests(), strict=True):
                    for name in one.names:
                        output.digest.add(name, one.element, one.shape, digest)
    except BaseException:
        job.stop = True
        raise


@dataclass
class _Output:
    """One output while it is written: what was noticed of it so far."""

    target: Target
    writer: Writer
    digest: Digest
    nonfinite: dict[str, int] = field(default_factory=dict[str, int])
    refused: dict[str, int] = field(default_factory=dict[str, int])

    def note_nonfinite(self, units: Sequence[Unit], start: int, result: Tensor, excuses: Sequence[Tensor]) -> None:
        """Note infinite and NaN values of a block, and how many of them the tensors that it was made of do not excuse.

        The block begins `start` elements into the units.
        """
        from merge.engine.kernel import nonfinite

        for unit, part in parts(units, start, start + len(result.reshape(-1))):
            count, name = nonfinite(result[part]), unit.name
            refused = count - sum(nonfinite(tensor[part]) for tensor in excuses)
            if count:
                self.nonfinite[name] = self.nonfinite.get(name, 0) + count
            if refused > 0:
                self.refused[name] = self.refused.get(name, 0) + refused

    def refuse_nonfinite(self, carried: bool) -> None:
        """Raise MergeError where there are infinite or NaN values that neither policy nor inputs allow."""
        policy = self.target.recipe.policy
        if not self.refused or policy.allow_nonfinite:
            return
        worst = sorted(self.refused.items(), key=lambda item: (-item[1], item[0]))[:SHOWN]
        listed = ", ".join(f"{count} in {name}" for name, count in worst)
        tensors = f"{len(self.refused)} tensor{'s' * (len(self.refused) > 1)}"
        whole, advice = describe(self.target.recipe), "pass allow_nonfinite=True to write them"
        if policy.dtype is None:
            raise MergeError(f"{whole}: infinite or NaN values in {tensors} ({listed}); {advice}")
        import torch

        largest = torch.finfo(dtype_named(policy.dtype).dtype).max
        limit = f"{policy.dtype}, which holds numbers up to {largest:g}"
        if carried:
            advice = f"leave dtype=... out or choose a wider one, or {advice}"
            raise MergeError(f"{self.target.path}: values of {tensors} ({listed}) do not fit into {limit}: {advice}")
        raise MergeError(f"{whole}: infinite or NaN values in {tensors} ({listed}) of {limit}; {advice}")


class _Pass(Reading):
    """What the workers of one pass share: the units that are left, the inputs' digests, whether to stop."""

    def __init__(self, plan: Plan, outputs: Sequence[_Output]):
        super().__init__(plan)
        self.outputs, self.stop = outputs, False
        self.block = min(BLOCK, TOGETHER // len(self.sources) // 16 * 16 or 16)
        self._stretches = stretches(plan, [output.writer for output in outputs])
        self._lock = threading.Lock()

    def next_units(self) -> list[Unit] | None:
        """Give the next unit, or several that are worked on as one; None when all are taken, or an error stops all."""
        with self._lock:
            return None if self.stop else next(self._stretches, None)


def _refuse_changed(plan: Plan, digests: Sequence[str]) -> None:
    for inner in plan.inner.values():
        _refuse_changed(inner.plan, inner.digests)
    changed = [
        f"{source.path} ({source.name}) has changed since the recipe was written: its digest was {source.digest}, "
        f"it is {digest}"
        for source, digest in zip(plan.recipe.sources, digests, strict=True)
        if source.digest and source.digest != digest
    ]
    if changed:
        raise MergeError("; ".join([*changed, "clear the digest in the recipe to accept it"]))
