"""Merge a sharded pair that is larger than memory and disk: files of zeros, which take no room until they are written.

    python benchmarks/sparse.py                  two inputs of 32 GB each, one output of 32 GB
    python benchmarks/sparse.py --gigabytes 4
    python benchmarks/sparse.py --layers         the layers of both merged, then a quarter of the second's once more
    python benchmarks/sparse.py --nested         the result of that merge, not written, with the second once more
    python benchmarks/sparse.py --series 8       eight checkpoints of a training, 32 GB together, and their average

The inputs have the shape of Emu2's: shards under an index, matrices of a 33-billion-parameter language model, most of
them holes and one tensor a shard with numbers, whose merge is checked. Blocks of zeros are read, hashed and computed as
all others, so the peak memory is that of real weights of these sizes; the time is not, since no disk is waited for. In
the output blocks of zeros are left as holes. Inputs in a file system in memory (--inputs /dev/shm) leave the system's
page cache to others.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from merge import Input, Options, Recipe, open_checkpoint, run, series
from merge.checkpoint.formats import safetensors
from merge.checkpoint.formats.elements import ELEMENTS
from merge.checkpoint.formats.tensors import Spec
from merge.plan.layers import layers_of

GB = 10**9
WIDTH, INNER = 6656, 17920  # of Emu2's language model; bfloat16
SHARD = 4 * GB


def write_input(folder: Path, size: int, value: float) -> None:
    """A folder of shards with `size` bytes of tensors; the first tensor of every shard is `value`, the rest holes."""
    layer = {"mlp.gate_proj": (INNER, WIDTH), "mlp.up_proj": (INNER, WIDTH), "self_attn.q_proj": (WIDTH, WIDTH)}
    weight_map: dict[str, str] = {}
    folder.mkdir()
    written = shard = number = 0
    while written < size:
        specs = {f"shard{shard}.norm": Spec(ELEMENTS["bfloat16"], (WIDTH,))}
        room = min(SHARD, size - written)
        held = 0
        while held < room:
            for name, shape in layer.items():
                specs[f"model.layers.{number}.{name}.weight"] = Spec(ELEMENTS["bfloat16"], shape)
                held += 2 * shape[0] * shape[1]
            number += 1
        file = folder / f"model-{shard + 1:05}.safetensors"
        (planned,) = safetensors.plan(file, specs, None, {"format": "pt"}).files
        with file.open("wb") as out:
            out.write(planned.chunks[0][1])
            out.truncate(planned.size)
            out.seek(planned.starts[f"shard{shard}.norm"])
            out.write(torch.full((WIDTH,), value).bfloat16().view(torch.uint8).numpy().tobytes())
        weight_map |= dict.fromkeys(specs, file.name)
        written, shard = written + held, shard + 1
    index = {"metadata": {"total_size": written}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def sizes(folder: Path) -> tuple[int, int]:
    """Apparent bytes and bytes on the disk."""
    stats = [file.stat() for file in folder.iterdir()]
    return sum(stat.st_size for stat in stats), sum(stat.st_blocks * 512 for stat in stats)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=32, help="of each input; of a series, of all together")
    parser.add_argument("--series", type=int, default=0, help="average so many checkpoints along a training instead")
    parser.add_argument("--layers", action="store_true", help="put the result together of layers")
    parser.add_argument("--nested", action="store_true", help="take the merge for an input of another")
    parser.add_argument("--inputs", type=Path, default=None, help="where the inputs are made (and removed)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.inputs) as scratch, tempfile.TemporaryDirectory() as made:
        values = {f"checkpoint-{step}": float(step) for step in range(1, given.series + 1)} or {"a": 1.0, "b": 3.0}
        folders = {name: Path(scratch, name) for name in values}
        for name, value in values.items():
            write_input(folders[name], int(given.gigabytes * GB / max(given.series, 1)), value)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        pair = tuple(Input(name, folder) for name, folder in folders.items())[:2]
        recipe = series(scratch) if given.series else Recipe("interpolate", pair, {"ratio": 0.25})
        wanted = (given.series + 1) / 2 if given.series else 1.5
        if given.layers:
            count = sum(name.endswith("q_proj.weight") for name in open_checkpoint(folders["a"]))
            stretches = [{"a": (0, count), "b": (0, count)}, {"b": (count - count // 4, count)}]
            recipe, wanted = replace(recipe, layers=layers_of(stretches)), 3.0  # behind the layers is the second's
        if given.nested:
            recipe = replace(recipe, inputs=(Input("mixed", Path("mixed"), recipe=recipe), pair[1]), layers={})
            recipe, wanted = recipe.with_parameters(ratio=0.5), (wanted + 3) / 2
        folders["out"] = Path(made, "out")
        start, busy = time.perf_counter(), time.process_time()
        run(recipe, folders["out"], Options(sync=False, threads=1))
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
        out = open_checkpoint(folders["out"])
        checked = sum(bool((out[name] == wanted).all()) for name in out if name.endswith(".norm"))
        for name, folder in folders.items():
            apparent, real = sizes(folder)
            shards = sum(file.suffix == ".safetensors" for file in folder.iterdir())
            print(f"{name:14} {apparent / GB:8.2f} GB apparent, {real / GB:7.4f} GB on the disk, {shards} shards")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"{len(out)} tensors, {checked} with numbers as wanted; {seconds:.1f} s, {busy:.1f} CPU-s")
        print(f"peak resident memory {peak / 1024:.0f} MiB, {before / 1024:.0f} MiB of it before the merge")


if __name__ == "__main__":
    main()
