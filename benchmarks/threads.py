"""What a second thread saves where arithmetic takes the time: TIES, and others, from files to a file.

    python benchmarks/threads.py [--folder DIR] [--repeats 5] [--megabytes 256] [--method ties --method pcb]

Makes a base and two experts in a temporary folder (/dev/shm takes the disk out of the measurement) and merges them by
each method on one thread and on two in turn; prints the least seconds of both and their ratio, for TIES also with its
threshold over the whole model. Results go to benchmarks/results/threads.json.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import merge
from merge.methods import METHODS

RESULTS = Path(__file__).parent / "results" / "threads.json"
LIMIT = 1.6  # TIES on two threads over one
SIDE = 1024


def make_inputs(folder: Path, megabytes: int) -> None:
    """Write a base and two experts of square matrices."""
    generator = torch.Generator().manual_seed(0)
    base = {f"t{i}": torch.randn(SIDE, SIDE, generator=generator) for i in range(megabytes // 4)}
    save_file(base, folder / "base.safetensors")
    for name in "ab":
        expert = {key: value + 0.02 * torch.randn(SIDE, SIDE, generator=generator) for key, value in base.items()}
        save_file(expert, folder / f"{name}.safetensors")


def seconds(recipe: merge.Recipe, folder: Path, threads: int) -> float:
    """Return the time of one merge."""
    options = merge.Options(threads=threads, sync=False, overwrite=True)
    start = time.perf_counter()
    merge.run(recipe, folder / "out.safetensors", options)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--method", action="append", choices=sorted(METHODS))
    arguments = parser.parse_args()
    cases: list[tuple[str, dict[str, Any]]] = []
    for method in arguments.method or ["ties", "pcb"]:
        needed = {name: item.example for name, item in METHODS[method].parameters.items() if item.required}
        cases.append((method, needed))
        if method == "ties":
            cases.append((method, {**needed, "threshold": "whole"}))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        make_inputs(folder, arguments.megabytes)
        inputs = tuple(merge.Input(word, folder / f"{word}.safetensors") for word in "ab")
        for method, parameters in cases:
            base = merge.Input("base", folder / "base.safetensors") if METHODS[method].takes_base else None
            recipe = merge.Recipe(method, inputs, parameters, base)
            runs = [[seconds(recipe, folder, threads) for threads in (1, 2)] for _ in range(arguments.repeats)]
            one, two = (min(run[index] for run in runs) for index in (0, 1))
            rows.append({"method": method, **parameters, "one": round(one, 3), "two": round(two, 3)})
            rows[-1]["ratio"] = round(one / two, 2)
            print(f"{method} {parameters}: {one:.2f} s on one thread, {two:.2f} s on two: {one / two:.2f}", flush=True)
    if rows[0]["method"] == "ties":
        print(f"ties on two threads: {rows[0]['ratio']:.2f} times as fast (limit {LIMIT})")
    where = {"megabytes": arguments.megabytes, "cores": os.cpu_count(), "torch": torch.__version__}
    RESULTS.write_text(json.dumps({**where, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
