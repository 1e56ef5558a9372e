"""What every merging method costs, beside `average`: CPU time from files to a file, and in memory.

    python benchmarks/methods.py [--folder DIR] [--repeats 3] [--only ties --only slerp]

One process, one thread. Makes a base, three experts and two files of statistics of 117 MB each in a temporary folder
(/dev/shm takes the disk out of the measurement), then merges two experts by each method in turn with `average`, and
prints the least CPU seconds of the repeats, nanoseconds per byte of one checkpoint, and the ratio to `average`. Results
go to benchmarks/results/methods.json (with --only their rows alone), from which docs/write_methods.py takes its column.
Methods of matrices take minutes for that: they merge a quarter of the tensors, once, and from files only.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import merge
from merge.methods import METHODS

RESULTS = Path(__file__).parent / "results" / "methods.json"
QUARTER = [(1024, 1024)] * 3 + [(4096, 1024)] + [(1024,)] * 5
HEAVY = "matrices"  # the group of methods that decompose whole matrices
LIMIT = 4  # TIES over average


def make_inputs(folder: Path, shapes: Sequence[tuple[int, ...]]) -> int:
    """Write the checkpoints; returns the bytes of one."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)

    def noise(size: float) -> dict[str, torch.Tensor]:
        return {f"t{i}": size * torch.randn(shape, generator=generator) for i, shape in enumerate(shapes)}

    base = noise(1.0)
    save_file(base, folder / "base.safetensors")
    for name in "ab":
        save_file({key: base[key] + value for key, value in noise(0.02).items()}, folder / f"{name}.safetensors")
    for name in ("fa", "fb"):
        squares = {key: value.square() for key, value in noise(1.0).items()}
        products = {key: value @ value.T if value.shape == (1024, 1024) else value for key, value in squares.items()}
        save_file(squares, folder / f"{name}-fisher.safetensors")
        save_file(products, folder / f"{name}-regmean.safetensors")
    return (folder / "base.safetensors").stat().st_size


def recipe_of(method: str, folder: Path) -> merge.Recipe:
    """Two experts by a method, or as many as it takes; required parameters at their example values."""
    entry = METHODS[method]
    names = ["a", "b", "base"][: max(2, entry.inputs[0])] if entry.inputs[1] != 1 else ["a"]
    if entry.statistics:
        names += [f"{name}-{method}" for name in ("fa", "fb")]
    parameters = {name: parameter.example for name, parameter in entry.parameters.items() if parameter.required}
    base = merge.Input("base", folder / "base.safetensors") if entry.takes_base else None
    return merge.Recipe(
        method, tuple(merge.Input(name, folder / f"{name}.safetensors") for name in names), parameters, base
    )


def cpu(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def measure(method: str, folder: Path, repeats: int, places: Sequence[str]) -> dict[str, float]:
    """The least CPU seconds of a method and of `average` measured in turn with it, from files and in memory."""
    options = merge.Options(threads=1, sync=False, overwrite=True)
    recipes = {"method": recipe_of(method, folder), "average": recipe_of("average", folder)}
    states = {key: [load_file(item.path) for item in recipe.sources] for key, recipe in recipes.items()}
    least: dict[str, float] = {}
    for _ in range(repeats):
        for key, recipe in recipes.items():
            base, inputs = (states[key][0], states[key][1:]) if recipe.base else (None, states[key])
            named = {item.name: state for item, state in zip(recipe.inputs, inputs, strict=True)}
            for place, run in (
                ("files", lambda recipe=recipe: merge.run(recipe, folder / "out.safetensors", options)),
                (
                    "memory",
                    lambda recipe=recipe, named=named, base=base: merge.merge_with(
                        recipe.method, named, base, **recipe.parameters
                    ),
                ),
            ):
                if place not in places:
                    continue
                seconds = cpu(run)
                least[f"{key}, {place}"] = min(seconds, least.get(f"{key}, {place}", seconds))
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", action="append", choices=sorted(METHODS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        whole, part = Path(name) / "whole", Path(name) / "part"
        size, fewer = make_inputs(whole, QUARTER * 4), make_inputs(part, QUARTER)
        print(f"{size / 1e6:.0f} MB a checkpoint; CPU seconds from files, per byte, over average; the same in memory")
        for method in arguments.only or METHODS:
            heavy = METHODS[method].group == HEAVY
            places = ("files",) if heavy else ("files", "memory")
            found = measure(method, part if heavy else whole, 1 if heavy else arguments.repeats, places)
            row: dict[str, float] = {}
            for place in places:
                seconds = found[f"method, {place}"]
                row |= {
                    f"{place}_seconds": round(seconds, 3),
                    f"{place}_ns_per_byte": round(seconds / (fewer if heavy else size) * 1e9, 2),
                    f"{place}_over_average": round(seconds / found[f"average, {place}"], 2),
                }
            rows[method] = row
            print(f"{method:17}" + "".join(f"{value:8.2f}" for value in row.values()), flush=True)
    if "ties" in rows:
        print(f"ties over average, from files: {rows['ties']['files_over_average']:.2f} (limit {LIMIT})")
    where = {"bytes": size, "processor": platform.processor() or platform.machine(), "torch": torch.__version__}
    if arguments.only:
        before = json.loads(RESULTS.read_text())
        where, rows = before, {**before["methods"], **rows}
    RESULTS.write_text(json.dumps({**where, "methods": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
