"""Merging against the machine: `cat`, `cp`, `import torch`, a minimal loop, UnIVAL's way, and ours, in one run.

    python benchmarks/merging.py [--folder DIR] [--repeats 5] [--quick]

Makes two checkpoints of UnIVAL-base shape once, then runs every command as a whole process in turn, `repeats` times
round, and prints medians of wall and CPU seconds, peak anonymous memory, and the ratios to the stated limits. Results
go to benchmarks/results/merging.json. A folder in memory (/dev/shm) takes the disk out of the measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

import merge
from unival_core.config import CONFIGS
from unival_core.model import UnivalModel

HERE = Path(__file__).parent
MERGE = [sys.executable, "-m", "merge"]
LOOP = """
import sys, torch
from safetensors import safe_open
from safetensors.torch import save_file
with safe_open('a.safetensors', 'pt') as a, safe_open('b.safetensors', 'pt') as b:
    for i in range({points}):
        merged = {{k: torch.lerp(a.get_tensor(k), b.get_tensor(k), i / 10) for k in a.keys()}}
        save_file(merged, f'out-loop-{{i}}.safetensors')
"""
UNIVAL = """
import torch
for i in range({points}):
    r = 1 - i / 10
    a = torch.load('a.pt', map_location='cpu')
    b = torch.load('b.pt', map_location='cpu')
    a['model'] = {{k: r * a['model'][k] + (1 - r) * b['model'][k] for k in a['model']}}
    torch.save(a, f'out-unival-{{i}}.pt')
"""


def make_inputs(folder: Path) -> dict[str, float]:
    """Two checkpoints of UnIVAL-base shape (images and videos) in three formats, and a pair of many small tensors."""
    with torch.device("meta"):
        model = UnivalModel(replace(CONFIGS["base"], audio=None))
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if value.is_floating_point()}
    for alias in ("decoder.embed_tokens.weight", "decoder.output_projection.weight"):
        shapes.pop(alias)
    for seed, name in enumerate("ab"):
        if (folder / f"small-{name}.safetensors").exists():
            continue
        generator = torch.Generator().manual_seed(seed)
        tensors = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
        save_file(tensors, folder / f"{name}.safetensors")
        save_file({key: value.bfloat16() for key, value in tensors.items()}, folder / f"{name}-bf16.safetensors")
        torch.save({"model": tensors}, folder / f"{name}.pt")
        small = {f"layer.{i}.w": torch.randn(16, generator=generator) for i in range(10_000)}
        save_file(small, folder / f"small-{name}.safetensors")
    numel = sum(torch.Size(shape).numel() for shape in shapes.values())
    return {
        "tensors": len(shapes),
        "parameters_millions": numel / 1e6,
        "bytes": (folder / "a.safetensors").stat().st_size,
    }


def commands(points: int) -> dict[str, list[str]]:
    """Every measured process by name."""
    shell = ["sh", "-c"]
    copies = "; ".join(f"cp a.safetensors out-cp-{i}.safetensors" for i in range(points))
    pair = ["a.safetensors", "b.safetensors"]
    many = [*MERGE, "sweep", *pair, "--points", str(points), "--no-sync", "-o", "out-sweep"]

    def ours(first: str, second: str, output: str, *more: str) -> list[str]:
        return [*MERGE, "interpolate", first, second, "--ratio", "0.3", "-o", output, *more]

    return {
        "cat a b": [*shell, "cat a.safetensors b.safetensors > /dev/null"],
        "cp a c": [*shell, "cp a.safetensors out-cp.safetensors"],
        "import torch": [sys.executable, "-c", "import torch"],
        "minimal loop": [sys.executable, "-c", LOOP.format(points=1)],
        "UnIVAL's way": [sys.executable, "-c", UNIVAL.format(points=1)],
        "interpolate": ours(*pair, "out.safetensors", "--no-sync"),
        "interpolate, bf16": ours("a-bf16.safetensors", "b-bf16.safetensors", "out.safetensors", "--no-sync"),
        "interpolate, .pt to .pt": ours("a.pt", "b.pt", "out.pt", "--no-sync"),
        "interpolate, .pt to .safetensors": ours("a.pt", "b.pt", "out.safetensors", "--no-sync"),
        "interpolate, synced": ours(*pair, "out.safetensors"),
        "dd conv=fsync": [*shell, "dd if=a.safetensors of=out-dd bs=4M conv=fsync 2> /dev/null"],
        "import merge engine": [sys.executable, "-c", "import merge.engine.stream"],
        "10,000 tensors of 16": ours("small-a.safetensors", "small-b.safetensors", "out.safetensors", "--no-sync"),
        f"{points} x cp": [*shell, copies],
        f"{points} ratios, minimal loop": [sys.executable, "-c", LOOP.format(points=points)],
        f"{points} ratios, sweep": many,
    }


def measure(command: list[str], folder: Path) -> dict[str, float]:
    """Run one process to its end: wall and CPU seconds, peak anonymous memory in MB (sampled every 5 ms)."""
    for left in folder.glob("out*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    env = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, env=env)
    peak = 0
    while True:
        done, status, usage = os.wait4(process.pid, os.WNOHANG)
        if done:
            break
        peak = max(peak, _anonymous(process.pid))
        time.sleep(0.005)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"failed: {command}")
    return {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "anonymous_mb": peak / 1024}


def _anonymous(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def measure_live(folder: Path, repeats: int) -> dict[str, float]:
    """`LinearPath.set` on a live model beside one `torch.lerp(out=)` pass over the same bytes, seconds."""
    first, second = merge.load_checkpoint(folder / "a.safetensors"), merge.load_checkpoint(folder / "b.safetensors")
    model = torch.nn.Module()
    names: dict[str, str] = {}
    for index, (name, value) in enumerate(first.items()):
        model.register_buffer(f"t{index}", torch.empty_like(value))
        names[name] = f"t{index}"
    renamed = [{names[name]: value for name, value in side.items()} for side in (first, second)]
    path = merge.LinearPath(model, *renamed)
    outs = {name: torch.empty_like(value) for name, value in first.items()}
    lerps, sets = [], []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        for name, out in outs.items():
            torch.lerp(first[name], second[name], 0.3, out=out)
        middle = time.perf_counter()
        path.set(0.3)
        lerps.append(middle - start)
        sets.append(time.perf_counter() - middle)
    return {"lerp": statistics.median(lerps[1:]), "set": statistics.median(sets[1:])}


def targets(rows: dict[str, dict[str, float]], live: dict[str, float], points: int) -> dict[str, tuple[float, str]]:
    """What was reached beside what was to be reached."""

    def wall(name: str) -> float:
        return rows[name]["wall"]

    begin, read, write = wall("import torch"), wall("cat a b"), wall("cp a c")
    per_byte = wall("interpolate") - begin
    sweep, loops = rows[f"{points} ratios, sweep"], rows.get(f"{points} ratios, minimal loop")
    reached = {
        "(interpolate - import torch) / (cat + cp)": (per_byte / (read + write), "<= 2.0"),
        "interpolate CPU / minimal loop CPU": (rows["interpolate"]["cpu"] / rows["minimal loop"]["cpu"], "< 1"),
        "interpolate anonymous MB": (rows["interpolate"]["anonymous_mb"], "< 500"),
        "bf16 per byte / fp32 per byte": ((wall("interpolate, bf16") - begin) / per_byte * 2, "<= 1.3"),
        ".pt to .pt per byte / safetensors": ((wall("interpolate, .pt to .pt") - begin) / per_byte, "<= 1.3"),
        ".pt to .safetensors per byte / safetensors": (
            (wall("interpolate, .pt to .safetensors") - begin) / per_byte,
            "<= 1.3",
        ),
        f"({points} ratios - import torch) / (cat + {points} cp)": (
            (sweep["wall"] - begin) / (read + wall(f"{points} x cp")),
            "<= 1.3",
        ),
        "live set / lerp pass": (live["set"] / live["lerp"], "<= 1.5"),
        "10,000 small tensors beyond the import, s": (
            wall("10,000 tensors of 16") - wall("import merge engine"),
            "< 1",
        ),
    }
    if loops:
        reached[f"{points} ratios CPU / minimal loop CPU"] = (sweep["cpu"] / loops["cpu"], "< 0.5")
    return reached


def _medians(several: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(run[key] for run in several) for key in several[0]}


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=HERE / "data", help="where inputs and outputs go (about 20 GB)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--points", type=int, default=11)
    parser.add_argument("--quick", action="store_true", help="leave out the slowest: the sweep by a minimal loop")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    about = make_inputs(options.folder)
    todo = commands(options.points)
    if options.quick:
        del todo[f"{options.points} ratios, minimal loop"]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in todo}
    for _ in range(options.repeats):
        for name, command in todo.items():
            runs[name].append(measure(command, options.folder))
    rows = {
        name: {key: statistics.median(run[key] for run in several) for key in several[0]}
        for name, several in runs.items()
    }
    live = measure_live(options.folder, options.repeats)
    size = f"{about['tensors']:.0f} tensors, {about['parameters_millions']:.1f}M parameters"
    print(f"{size}, medians of {options.repeats}\n")
    print(f"{'':36}{'wall s':>8}{'CPU s':>8}{'anon MB':>9}")
    for name, row in rows.items():
        print(f"{name:36}{row['wall']:8.2f}{row['cpu']:8.2f}{row['anonymous_mb']:9.0f}")
    print(f"{'live: one lerp pass / set':36}{live['lerp']:8.2f}{live['set']:8.2f}\n")
    reached = targets(rows, live, options.points)
    for name, (value, limit) in reached.items():
        print(f"{name:52}{value:8.2f}   to reach {limit}")
    result = {
        "about": about,
        "machine": {"cores": os.cpu_count(), "system": platform.platform()},
        "rows": rows,
        "live": live,
    }
    result["reached"] = {name: {"value": value, "to reach": limit} for name, (value, limit) in reached.items()}
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "merging.json").write_text(json.dumps(result, indent=2) + "\n")
    for left in options.folder.glob("out*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


if __name__ == "__main__":
    main()
