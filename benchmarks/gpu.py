"""A GPU against the processor: merging on it, the live path, and a grid of the full-size model in fp32 and bf16.

    python benchmarks/gpu.py [--device cuda] [--folder DIR] [--config base] [--points 6] [--repeats 5]

Makes two checkpoints of random parameters, runs a study of them on made images on the device in both precisions and a
part of it on the processor, and prints seconds, cells per minute, memory, and how far rows lie from the processor's.
Takes under eight minutes on one GPU. `--device cpu --config pocket` runs small anywhere. Figures go to
benchmarks/results/gpu.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import experiments
import merge
from unival_core.config import CONFIGS, replace
from unival_core.model import Inputs, UnivalModel

RESULT = Path(__file__).parent / "results" / "gpu.json"
EXAMPLES, SOURCE, TARGET = 16, 20, 16  # of a cell: images, and the tokens of a question and an answer
BATCH = 8
TOLERANCE = {"fp32": 1e-3, "bf16": 2e-2}  # of a loss, relative to the processor's
PIXELS = {"base": 384, "pocket": 48}


def made_model(config: str) -> UnivalModel:
    """Return a model of images and text in a size that CONFIGS names, with drawn weights."""
    return UnivalModel(replace(CONFIGS[config], video=None, audio=None)).eval()


def make_checkpoints(folder: Path, config: str) -> dict[str, Path]:
    """Write two checkpoints of drawn parameters, once; return them by name."""
    files: dict[str, Path] = {}
    for seed, name in enumerate(("first", "second")):
        files[name] = folder / f"{config}-{name}.safetensors"
        if not files[name].exists():
            torch.manual_seed(seed)
            merge.save_checkpoint(made_model(config), files[name])
    return files


@dataclass(frozen=True)
class Loss:
    """The loss of made answers to made questions about made images, an example each."""

    pixels: int
    examples: int = EXAMPLES

    def __call__(self, model: Any, split: str) -> Tensor:
        """Return the mean negative log-likelihood of each answer (examples,), in nats per token."""
        device, vocabulary = next(model.parameters()).device, model.config.vocabulary
        drawn = torch.Generator().manual_seed(0)
        found: list[Tensor] = []
        for start in range(0, self.examples, BATCH):
            rows = min(BATCH, self.examples - start)
            images = torch.randn(rows, 3, self.pixels, self.pixels, generator=drawn).to(device)
            source, target = (
                torch.randint(4, vocabulary, (rows, length), generator=drawn).to(device) for length in (SOURCE, TARGET)
            )
            logits = model(Inputs(source, images=images), target).float()
            found.append(nn.functional.cross_entropy(logits.transpose(1, 2), target, reduction="none").mean(1))
        return torch.cat(found)


def study_of(files: Mapping[str, Path], config: str, points: int) -> experiments.Study:
    """Return the study: one task of nobody, so that every point is asked it at equal shares and at the ends alone."""
    task = experiments.Task(Loss(PIXELS[config]), metric="loss", unit="nats", higher_is_better=False, expert="first")
    return experiments.Study(
        f"gpu {config}", partial(made_model, config), dict(files), {"made": task}, splits=("test",), points=points
    )


def seconds(work: Callable[[], object], device: str, repeats: int) -> float:
    """Return the median time of some work, measured when the device is done."""
    times: list[float] = []
    for number in range(repeats + 1):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        times += [time.perf_counter() - began] if number else []  # the first one warms up
    return statistics.median(times)


def wait(device: str) -> None:
    """Wait until a GPU has done what was asked of it."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def measure(device: str, config: str, points: int, repeats: int, folder: Path) -> dict[str, float | str]:
    """Return all figures by name."""
    files = make_checkpoints(folder, config)
    first, second = (merge.open_checkpoint(file) for file in files.values())
    found: dict[str, float | str] = {"device": device if device == "cpu" else torch.cuda.get_device_name(device)}
    found |= {"config": config, "gigabytes of a checkpoint": round(first.nbytes / 1e9, 3)}

    def to_file() -> None:
        recipe = merge.Recipe("interpolate", tuple(merge.Input(n, f) for n, f in files.items()), {"ratio": 0.4})
        merge.run(recipe, folder / "merged.safetensors", merge.Options(overwrite=True, device=device))

    found["merge to a file [s]"] = seconds(to_file, device, repeats)
    model = made_model(config).to(device)
    for resident in (True, False):
        path = merge.LinearPath(model, first, second, resident=resident)
        where = "resident" if resident else "streamed"
        found[f"live set, {where} [s]"] = seconds(partial(path.set, 0.4), device, repeats)
        del path
    del model
    study = study_of(files, config, points)
    wanted = by_point(experiments.run(study, folder / "cpu", points=3, progress=False))
    for precision in ("fp32", "bf16"):
        rows = folder / f"{device.replace(':', '-')}-{precision}"
        began = time.perf_counter()
        results = experiments.run(study, rows, device=device, precision=precision, progress=False)
        wait(device)
        took = time.perf_counter() - began
        ours = by_point(results)
        apart = max(abs(ours[point] - value) / abs(value) for point, value in wanted.items())
        found[f"grid {precision}, cells per minute"] = 60 * len(ours) / took
        found[f"grid {precision}, furthest from the processor's rows"] = apart
        if apart > TOLERANCE[precision]:
            raise SystemExit(
                f"{precision}: a row is {apart:.2e} from the processor's, more than {TOLERANCE[precision]}"
            )
    if device != "cpu":
        found["peak memory of the device [GB]"] = torch.cuda.max_memory_allocated(device) / 1e9
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in found.items()}


def by_point(results: experiments.Results) -> dict[str, float]:
    """Return the scores by point in words."""
    return dict(zip(results.rows["point"], results.rows["value"], strict=True))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--config", choices=tuple(PIXELS), default="base")
    parser.add_argument("--points", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as made:
        folder = options.folder or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        found = measure(options.device, options.config, options.points, options.repeats, folder)
    text = json.dumps(found, indent=1)
    options.output.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
