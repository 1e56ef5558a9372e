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
import sys
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.checkpoint.atomic import replacing
from merge.checkpoint.digest import Digest
from merge.checkpoint.formats.tensors import Decoded, TensorEntry, raw_bytes
from merge.checkpoint.open import SHOWN
from merge.checkpoint.owned import CARD, SWEEP, recipe_path
from merge.checkpoint.save import Writer
from merge.engine.card import card
from merge.engine.files import Options, Plan, Target, identity, plan_run, plan_sweep, record
from merge.engine.stretches import Contents, parts, stretches
from merge.engine.summary import summary
from merge.engine.workers import workers_for
from merge.errors import MergeError
from merge.plan.policy import dtype_named
from merge.plan.units import Unit
from merge.recipe.parameters import method_named
from merge.recipe.recipe import Recipe
from merge.recipe.shares import describe, shares

if TYPE_CHECKING:
    from torch import Tensor

# Bytes of a result computed and written at a time: small enough for the caches, large enough that the interpreter takes
# little of the time, and threads seldom meet at its lock (blocks of 128 KiB made two threads slower than one).
BLOCK = 1 << 20
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
    before = torch.get_num_threads()
    try:
        for target, partial in zip(plan.targets, partials, strict=True):
            outputs.append(_Output(target, Writer(target.layout, partial), Digest(options.digest)))
        job = _Pass(plan, outputs)
        count = workers_for(plan)
        with ThreadPoolExecutor(count) as pool:
            workers = [pool.submit(work, job) for _ in range(count)]
            try:
                for worker in workers:
                    worker.result()
            except BaseException:
                job.stop = True  # the others leave after their block
                raise
        digests = job.finish()
        _refuse_changed(plan.recipe, digests)
        for output in outputs:
            output.refuse_nonfinite(options.carry_nonfinite)
            blank, known = (identity(output.target.recipe, options.digest, found) for found in (None, digests))
            output.writer.fill_in(*(json.dumps(text, ensure_ascii=False).encode() for text in (blank, known)))
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
    buffers = _Buffers(job.block)
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
            used = [_reader_of(unit.name, readers[index]) for index in unit.sources]
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


class _Pass:
    """What the workers of one pass share: the units that are left, the inputs' digests, whether to stop."""

    def __init__(self, plan: Plan, outputs: Sequence[_Output]):
        self.plan, self.outputs, self.stop = plan, outputs, False
        self.sources = [checkpoint.entries for checkpoint in plan.checkpoints]
        self.block = min(BLOCK, TOGETHER // len(self.sources) // 16 * 16 or 16)
        self._stored = [checkpoint.stored for checkpoint in plan.checkpoints]
        self._digests = [Digest(plan.options.digest) for _ in self.sources]
        self._stretches = stretches(plan, [output.writer for output in outputs])
        self._lock = threading.Lock()

    def next_units(self) -> list[Unit] | None:
        """Give the next unit, or several that are worked on as one; None when all are taken, or an error stops all."""
        with self._lock:
            return None if self.stop else next(self._stretches, None)

    def readers(self, index: int, names: Sequence[Sequence[str]], most: int, buffers: _Buffers) -> list[_Reader]:
        """Give a reader for every stored tensor that input `index` has under the names of a unit; tied names share one.

        Of several units that are worked on as one, all are of one reader. It reads at most `most` elements at a time.
        """
        entries, new = self.sources[index], self._digests[index].start
        if len(names) > 1:
            return [_Reader([(entries[mine[0]], mine) for mine in names], most, buffers, index, new)]
        found: dict[Hashable, list[str]] = {}
        for name in names[0]:
            if name in entries:
                tie = entries[name].tie
                found.setdefault(name if tie is None else tie, []).append(name)
        return [_Reader([(entries[tied[0]], tied)], most, buffers, index, new) for tied in found.values()]

    def note_digests(self, index: int, readers: Sequence[_Reader], stored: Mapping[str, str] | None = None) -> None:
        """Note the digests of tensors of input `index`, reading first what nobody needed."""
        stored = self._stored[index] if stored is None else stored
        digest, progress = self._digests[index], self.plan.options.progress
        for reader in readers:
            for (entry, names), content in zip(reader.parts, reader.finish(), strict=True):
                of = _origin(entry) or entry
                for name in names:  # a digest is the file's, whatever it is merged as
                    digest.add(stored.get(name, name), of.element, of.shape, content)
            if progress:
                progress(sum(entry.nbytes for entry, _ in reader.parts))

    def finish(self) -> list[str]:
        """Read the tensors that no unit has; give the digest of every input, over all its tensors."""
        used = {name for unit in self.plan.units for name in unit.names}
        for index, entries in enumerate(self.sources):
            left = [name for name in entries if name not in used]
            buffers, new = _Buffers(BLOCK), self._digests[index].start
            self.note_digests(index, self.readers(index, [left], BLOCK, buffers))
            for name, entry in self.plan.checkpoints[index].hidden.items():
                self.note_digests(index, [_Reader([(entry, [name])], BLOCK, buffers, index, new)], {})
        return [digest.text() for digest in self._digests]


class _Buffers:
    """A thread's read buffers, used again for every tensor; `least` is the size of one in bytes."""

    def __init__(self, least: int) -> None:
        self._least = least
        self._all: list[tuple[Tensor, memoryview]] = []

    def get(self, index: int, size: int) -> tuple[Tensor, memoryview]:
        """Give memory of at least `size` bytes for one input: fresh pages cost more than the read into them."""
        size = max(size, self._least)
        if index < len(self._all) and len(self._all[index][1]) >= size:
            return self._all[index]
        import torch

        while index >= len(self._all):
            self._all.append((torch.empty(0, dtype=torch.uint8), memoryview(b"")))
        buffer = torch.empty(size, dtype=torch.uint8)
        self._all[index] = (buffer, buffer.numpy().data)
        return self._all[index]


class _Reader:
    """A stored tensor with its names, or several side by side, read front to back in blocks and hashed on the way."""

    def __init__(
        self,
        parts: Sequence[tuple[TensorEntry, Sequence[str]]],
        most: int,
        buffers: _Buffers,
        index: int,
        new: Callable[[], Any],
    ):
        self.parts, self.at = parts, 0
        self.entry, self.names = parts[0]
        self.buffers = (buffers, index, new)
        sizes = [entry.nbytes for entry, _ in parts]
        self.content = Contents(new, sizes)
        self.numel = sum(sizes) // self.entry.element.itemsize  # bytes, where several elements share one
        self.most = min(most, self.numel)
        self.flat: Tensor | None = None
        if self.entry.stride is not None:
            self.flat = self.entry.loaded().contiguous().reshape(-1)
        else:
            self.buffer, self.view = buffers.get(index, self.most * self.entry.element.itemsize)

    def block(self, stop: int) -> Tensor:
        """Read the elements from where the last block ended to `stop`; they are valid until the next call."""
        start, self.at = self.at, stop
        if self.flat is not None:
            part = self.flat[start:stop]
            self.content.update(raw_bytes(part))
            return part
        size = self.entry.element.itemsize
        view = self.view[: (stop - start) * size]
        self.entry.file.read_into(view, self.entry.offset + start * size)
        if _origin(self.entry) is None:
            self.content.update(view)
        return (
            self.buffer[: len(view)] if self.entry.element.bits < 8 else self.buffer[: len(view)].view(self.entry.dtype)
        )

    def finish(self) -> list[str]:
        """Read what is left, for the digest alone; give the digest of every tensor in hex."""
        if origin := _origin(self.entry):
            return _Reader([(origin, self.names)], BLOCK, *self.buffers).finish()
        while self.at < self.numel:
            self.block(min(self.at + self.most, self.numel))
        return self.content.hexdigests()


def _origin(entry: TensorEntry) -> TensorEntry | None:
    """The stored tensor that an entry is another view of; its bytes are what is hashed."""
    return entry.file.origin if isinstance(entry.file, Decoded) else None


def _reader_of(name: str, readers: Sequence[_Reader]) -> _Reader:
    return readers[0] if len(readers) == 1 else next(reader for reader in readers if name in reader.names)


def _refuse_changed(recipe: Recipe, digests: Sequence[str]) -> None:
    changed = [
        f"{source.path} ({source.name}) has changed since the recipe was written: its digest was {source.digest}, "
        f"it is {digest}"
        for source, digest in zip(recipe.sources, digests, strict=True)
        if source.digest and source.digest != digest
    ]
    if changed:
        raise MergeError("; ".join([*changed, "clear the digest in the recipe to accept it"]))
