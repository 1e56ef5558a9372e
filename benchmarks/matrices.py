"""What a method of matrices takes on a pair of UnIVAL-base shape (1.0 GB each) and its base, from files on every core.

    python benchmarks/matrices.py [--folder /dev/shm/matrices] [--method tsv] [--threads 0]

Makes three files of 1.0 GB in the folder if they are not there, and leaves them. Prints seconds by the clock, CPU
seconds, nanoseconds of CPU per byte of one checkpoint and, where the files were there (making them takes more), peak
resident memory; results go to benchmarks/results/matrices.json by method and threads.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

import merge
from unival_core import CONFIGS, UnivalModel

RESULTS = Path(__file__).parent / "results" / "matrices.json"


def make_inputs(folder: Path) -> tuple[int, bool]:
    """Write a base and two experts near it; returns the bytes of one, and whether they were there already."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        model = UnivalModel(replace(CONFIGS["base"], audio=None))
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if value.is_floating_point()}
    for alias in ("decoder.embed_tokens.weight", "decoder.output_projection.weight"):
        shapes.pop(alias)
    generator = torch.Generator().manual_seed(0)
    there = all((folder / f"{name}.safetensors").exists() for name in ("base", "a", "b"))
    if not there:
        base = {key: 0.05 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}
        save_file(base, folder / "base.safetensors")
        for name in "ab":
            expert = {key: value + 0.002 * torch.randn(value.shape, generator=generator) for key, value in base.items()}
            save_file(expert, folder / f"{name}.safetensors")
    return (folder / "base.safetensors").stat().st_size, there


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm/matrices"))
    parser.add_argument("--method", default="tsv", choices=sorted(merge.METHODS))
    parser.add_argument("--threads", type=int, default=0, help="0: as many as are useful")
    arguments = parser.parse_args()
    size, there = make_inputs(arguments.folder)
    paths = {name: arguments.folder / f"{name}.safetensors" for name in ("a", "b", "base")}
    method = merge.METHODS[arguments.method]
    parameters = {name: parameter.example for name, parameter in method.parameters.items() if parameter.required}
    base = merge.Input("base", paths["base"]) if method.takes_base else None
    recipe = merge.Recipe(arguments.method, tuple(merge.Input(name, paths[name]) for name in "ab"), parameters, base)
    options = merge.Options(threads=arguments.threads, sync=False, overwrite=True)
    wall, cpu = time.perf_counter(), time.process_time()
    merge.run(recipe, arguments.folder / "out.safetensors", options)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    row = {
        "wall_seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
        "ns_per_byte": round(cpu / size * 1e9, 1),
        "peak_gigabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2) if there else None,
        "cores": os.cpu_count(),
    }
    print(f"{arguments.method}, {size / 1e9:.2f} GB: {row}")
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    rows = {**before, f"{arguments.method}, threads {arguments.threads}": row}
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
