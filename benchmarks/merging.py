"""Merging against the machine: `cat`, `cp`, `import torch`, a minimal loop, UnIVAL's way, and ours, in one run.

    python benchmarks/merging.py [--folder DIR] [--repeats 5] [--quick]

Makes two checkpoints of UnIVAL-base shape once, then runs every command as a whole process in turn, `repeats` times
round, and prints medians of wall and CPU seconds, peak anonymous memory, and what was reached beside the limits. What
is beyond `import torch` has that process's seconds taken off. Python keeps what it compiles, as where packages are
installed: the first of several runs is the slow one. Results go to benchmarks/results/merging.json. A folder
in memory (/dev/shm) takes the disk out of the measurement; outputs are removed after every command.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
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
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
LOOP = """
import sys, torch
from safetensors import safe_open
from safetensors.torch import save_file
with safe_open('a.safetensors', 'pt') as a, safe_open('b.safetensors', 'pt') as b:
    for i in range({points}):
        merged = {{k: torch.lerp(a.get_tensor(k), b.get_tensor(k), i / 10) for k in a.keys()}}
        save_file(merged, f'out-loop-{{i}}.safetensors')
"""
# What a merge imports beside torch, and what its checks take, by CPU seconds in one process.
IMPORTS = """
import gc; gc.disable()
import json, time, torch
start = time.process_time()
import experiments.commands, merge.commands.merging, merge.engine.kernel, merge.engine.stream, merge.methods.linear
print(json.dumps({"cpu": time.process_time() - start}))
"""
CHECKS = """
import json, time, torch
from merge.checkpoint.open import open_checkpoint
from merge.plan import units
checks, spent = units.examine, []
def timed(facts):
    start = time.process_time()
    found = checks(facts)
    spent.append(time.process_time() - start)
    return found
units.examine = timed
for _ in range(5):
    units.plan([open_checkpoint(f"{name}.safetensors") for name in "ab"], list("ab"))
print(json.dumps({"cpu": sorted(spent)[2]}))
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
    """Two checkpoints of UnIVAL-base shape (images and videos) in three formats, a pair of its names with an element
    each, and a pair of many small tensors."""
    with torch.device("meta"):
        model = UnivalModel(replace(CONFIGS["base"], audio=None))
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if value.is_floating_point()}
    for alias in ("decoder.embed_tokens.weight", "decoder.output_projection.weight"):
        shapes.pop(alias)
    for seed, name in enumerate("ab"):
        if (folder / f"names-{name}.safetensors").exists():
            continue
        generator = torch.Generator().manual_seed(seed)
        tensors = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
        save_file(tensors, folder / f"{name}.safetensors")
        for short, dtype in HALVES.items():
            save_file({key: value.to(dtype) for key, value in tensors.items()}, folder / f"{name}-{short}.safetensors")
        torch.save({"model": tensors}, folder / f"{name}.pt")
        small = {f"layer.{i}.w": torch.randn(16, generator=generator) for i in range(100_000)}
        save_file(small, folder / f"small-{name}.safetensors")
        save_file({"other": torch.ones(3)}, folder / "other.safetensors")
        names = {key: torch.randn(1, generator=generator) for key in shapes}
        save_file(names, folder / f"names-{name}.safetensors")
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
    pair = ("a.safetensors", "b.safetensors")
    many = [*MERGE, "sweep", *pair, "--points", str(points), "--no-sync", "-o", "out-sweep"]

    def ours(first: str, second: str, output: str) -> list[str]:
        return [*MERGE, "interpolate", first, second, "--ratio", "0.3", "-o", output, "--no-sync"]

    return {
        "cat a b": [*shell, "cat a.safetensors b.safetensors > /dev/null"],
        "cp a c": [*shell, "cp a.safetensors out-cp.safetensors"],
        "import torch": [sys.executable, "-c", "import torch"],
        "minimal loop": [sys.executable, "-c", LOOP.format(points=1)],
        "UnIVAL's way": [sys.executable, "-c", UNIVAL.format(points=1)],
        "interpolate": ours(*pair, "out.safetensors"),
        **{
            f"interpolate, {short}": ours(f"a-{short}.safetensors", f"b-{short}.safetensors", "out.safetensors")
            for short in HALVES
        },
        "interpolate, names alone": ours("names-a.safetensors", "names-b.safetensors", "out.safetensors"),
        "interpolate, .pt to .pt": ours("a.pt", "b.pt", "out.pt"),
        "interpolate, .pt to .safetensors": ours("a.pt", "b.pt", "out.safetensors"),
        "100,000 tensors of 16": ours("small-a.safetensors", "small-b.safetensors", "out.safetensors"),
        "inspect": [*MERGE, "inspect", "a.safetensors"],
        "methods": [*MERGE, "methods"],
        "--help": [*MERGE, "interpolate", "--help"],
        "missing file": [*shell, f"! {shlex.join(ours('a.pt', 'nowhere.pt', 'out.pt'))} 2> /dev/null"],
        "names differ": [*shell, f"! {shlex.join(ours('a.pt', 'other.safetensors', 'out.pt'))} 2> /dev/null"],
        f"{points} x cp": [*shell, copies],
        f"{points} ratios, minimal loop": [sys.executable, "-c", LOOP.format(points=points)],
        f"{points} ratios, sweep": many,
    }


def measure(command: list[str], folder: Path) -> dict[str, float]:
    """Run one process to its end: wall and CPU seconds, peak anonymous memory in MB (sampled every 5 ms)."""
    for left in folder.glob("out*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, env=environment(folder))
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


def environment(folder: Path) -> dict[str, str]:
    """The variables of a measured process. Compiled modules are kept in the folder, whatever the shell says of them."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": str(HERE.parent), "PYTHONPYCACHEPREFIX": str(folder.resolve() / "compiled")}


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


def inside(code: str, folder: Path, repeats: int) -> float:
    """CPU seconds that a script says of itself, the median of several runs."""
    command, env = [sys.executable, "-c", code], environment(folder)
    told = [subprocess.check_output(command, cwd=folder, env=env, stderr=subprocess.DEVNULL) for _ in range(repeats)]
    return statistics.median(json.loads(text)["cpu"] for text in told)


def targets(rows: dict[str, dict[str, float]], own: dict[str, float], points: int) -> dict[str, tuple[float, str]]:
    """What was reached beside what was to be reached; `own` are seconds measured inside of processes."""

    def beyond(name: str, kind: str = "cpu") -> float:
        return rows[name][kind] - rows["import torch"][kind]

    def bytewise(name: str) -> float:
        """What follows the bytes: without what a merge of the same names takes."""
        return rows[name]["cpu"] - rows["interpolate, names alone"]["cpu"]

    one, loop, read = beyond("interpolate"), beyond("minimal loop"), rows["cat a b"]["wall"]
    sweep, loops = f"{points} ratios, sweep", f"{points} ratios, minimal loop"
    copies = read + rows[f"{points} x cp"]["wall"]
    reached = {
        "interpolate CPU / minimal loop CPU, beyond the import": (one / loop, "<= 1"),
        "typer, commands and engine beyond torch, CPU s": (own["imports"], "<= 0.12"),
        **{
            f"{short} per byte / fp32 per byte, CPU": (2 * beyond(f"interpolate, {short}") / one, "")
            for short in HALVES
        },
        **{
            f"{short} per byte / fp32 per byte, CPU, without what every merge takes": (
                2 * bytewise(f"interpolate, {short}") / bytewise("interpolate"),
                "<= 1.1",
            )
            for short in HALVES
        },
        ".pt to .pt / safetensors, beyond the import": (
            beyond("interpolate, .pt to .pt", "wall") / beyond("interpolate", "wall"),
            "<= 1.2",
        ),
        f"({points} ratios - import torch) / (cat + {points} cp)": (beyond(sweep, "wall") / copies, "<= 1.10"),
        "100,000 small tensors, s": (rows["100,000 tensors of 16"]["wall"], "<= 8"),
        "all checks / interpolate beyond the import, CPU": (own["checks"] / one, "< 0.03"),
        "interpolate anonymous MB": (rows["interpolate"]["anonymous_mb"], "< 500"),
        "live set / lerp pass": (own["set"] / own["lerp"], "<= 1.5"),
    }
    for name in ("inspect", "methods", "--help", "missing file", "names differ"):
        reached[f"{name}, CPU s"] = (rows[name]["cpu"], "< 0.6")
    if loops in rows:
        reached[f"{points} ratios CPU / minimal loop CPU, beyond the import"] = (
            beyond(sweep) / beyond(loops),
            "<= 0.8",
        )
    return reached


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
    own = measure_live(options.folder, options.repeats)
    own["imports"] = inside(IMPORTS, options.folder, options.repeats)
    own["checks"] = inside(CHECKS, options.folder, options.repeats)
    size = f"{about['tensors']:.0f} tensors, {about['parameters_millions']:.1f}M parameters"
    print(f"{size}, medians of {options.repeats}\n")
    print(f"{'':36}{'wall s':>8}{'CPU s':>8}{'anon MB':>9}")
    for name, row in rows.items():
        print(f"{name:36}{row['wall']:8.2f}{row['cpu']:8.2f}{row['anonymous_mb']:9.0f}")
    print(f"{'live: one lerp pass / set':36}{own['lerp']:8.2f}{own['set']:8.2f}\n")
    reached = targets(rows, own, options.points)
    for name, (value, limit) in reached.items():
        print(f"{name:74}{value:8.3f}   {limit and f'to reach {limit}'}")
    result = {
        "about": about,
        "machine": {"cores": os.cpu_count(), "system": platform.platform()},
        "rows": rows,
        "own": own,
    }
    result["reached"] = {name: {"value": value, "to reach": limit} for name, (value, limit) in reached.items()}
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "merging.json").write_text(json.dumps(result, indent=2) + "\n")
    for left in options.folder.glob("out*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


if __name__ == "__main__":
    main()
