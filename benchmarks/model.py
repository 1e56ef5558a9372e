"""Seconds, tokens per second and peak memory of one forward pass and of beam search, on the CPU.

    python benchmarks/model.py                                        # base, batch 4, 384 x 384, two threads
    python benchmarks/model.py --batch 1 --repeats 1                  # what captioning one image takes
    python benchmarks/model.py --checkpoint vqa.pt --section model
    python benchmarks/model.py --pocket DIR --threads 1               # CPU seconds of a study's cells, DIR of `pocket`
    python benchmarks/model.py --caption 200                          # captions at batch 1 and 16, one thread and two

Weights do not change the time, so that they are random unless a checkpoint is given. Every repeat does the two
measurements once; medians go to the screen and to `benchmarks/results/model.json`.
"""

import argparse
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from experiments.grid.worker import Worker, copy_weights
from experiments.study.points import START, Cell, single
from experiments.unival.setups import PocketSetup
from experiments.unival.subject import UnivalSubject
from unival_core.checkpoint import load_model
from unival_core.config import CONFIGS, replace
from unival_core.generation import GenerationOptions, generate
from unival_core.model import Inputs, UnivalModel
from unival_core.tasks import TASKS

SOURCE, TARGET, BEAM = 20, 16, 5


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_gigabytes() -> float:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def cells(folder: Path, repeats: int, rows: int = 800) -> dict[str, float]:
    """CPU seconds of evaluating the pretrained model on the first rows of a test split, media decoded before."""
    subject = UnivalSubject(PocketSetup(folder), rows)
    worker, found = Worker(subject), {}
    for task in ("vqa", "caption", "grounding", "entailment"):
        model = subject.build(worker.layout(START, 0, task))
        copy_weights(worker.open(START, 0), model)
        times = []
        for _ in range(repeats + 1):
            start = time.process_time()
            subject.evaluate(model, Cell(single(START), task, "test"))
            times.append(time.process_time() - start)
        found[f"{task}, {rows} rows [CPU s]"] = round(statistics.median(times[1:]), 2)
    return found


def captioning(options: argparse.Namespace) -> dict[str, float | str]:
    """Images captioned a second, at every size of a batch and number of threads, as the task captions.

    Random weights end no sentence early: every caption has as many tokens as the task allows.
    """
    torch.manual_seed(0)
    model = UnivalModel(replace(CONFIGS[options.config], video=None, audio=None)).eval()
    task = TASKS["caption"].sized_for(model.config)
    side, longest = options.side or task.side, task.generation.max_len_b
    search, found = replace(task.generation, min_len=longest), {}
    images, tokens = torch.randn(max(options.batches), 3, side, side), torch.randint(4, 300, (max(options.batches), 8))
    for threads in options.caption_threads:
        torch.set_num_threads(threads)
        for batch in options.batches:
            whole, rest = divmod(options.caption, batch)
            inputs = [Inputs(tokens[:size], images=images[:size]) for size in (*[batch] * whole, *[rest] * bool(rest))]
            generate(model, inputs[-1], search)
            took = seconds(partial(list, (generate(model, one, search) for one in inputs)))
            found[f"batch {batch}, {threads} threads [images/s]"] = round(options.caption / took, 3)
    told = f"{options.config}, {options.caption} images of {side} px, beam {search.beam}, {longest + 1} tokens"
    return {**found, "setting": told, "machine": f"{platform.machine()}, torch {torch.__version__}"}


def main(options: argparse.Namespace) -> dict[str, float | int | str]:
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    if options.checkpoint is None:
        model = UnivalModel(replace(CONFIGS["base"], video=None, audio=None)).eval()
    else:
        model = load_model(options.checkpoint, section=options.section)
    batch, vocabulary = options.batch, model.config.vocabulary
    images = torch.randn(batch, 3, options.size, options.size)
    inputs = Inputs(torch.randint(4, vocabulary, (batch, SOURCE)), images=images)
    targets = torch.randint(4, vocabulary, (batch, TARGET))
    search = GenerationOptions(beam=BEAM, min_len=TARGET - 1, max_len_b=TARGET - 1)
    work: dict[str, Callable[[], object]] = {
        "image network": lambda: model.encoder.get_submodule("embed_images")(images),
        "encoder": lambda: model.encode(inputs),
        "forward": lambda: model(inputs, targets),
        "generate": lambda: generate(model, inputs, search),
    }
    with torch.inference_mode():
        for task in work.values():
            task()
        times = {name: [seconds(task) for _ in range(options.repeats)] for name, task in work.items()}
    median = {f"{name} [s]": round(statistics.median(values), 3) for name, values in times.items()}
    beyond = median["generate [s]"] - median["encoder [s]"]
    return {
        **median,
        "forward, tokens per second": round(batch * TARGET / median["forward [s]"], 1),
        "generate, tokens per second": round(batch * TARGET / median["generate [s]"], 1),
        "generate beyond the encoder [s]": round(beyond, 3),
        "peak memory [GB]": round(peak_gigabytes(), 2),
        "setting": f"batch {batch}, {options.size} px, {SOURCE} source and {TARGET} target tokens, beam {BEAM}",
        "threads": options.threads,
        "repeats": options.repeats,
        "machine": f"{platform.machine()}, torch {torch.__version__}",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--section", default="auto")
    parser.add_argument("--pocket", type=Path)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=384)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--caption", type=int, default=0, metavar="N", help="caption N images instead")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--caption-threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--config", default="base", choices=("base", "pocket"), help="of --caption")
    parser.add_argument("--side", type=int, default=0, help="pixels of --caption; default: the task's")
    parser.add_argument("--output", type=Path, help="of --caption; default: results/captioning.json")
    given = parser.parse_args()
    if given.caption:
        rates = captioning(given)
        print(json.dumps(rates, indent=1))
        place = given.output or Path(__file__).parent / "results" / "captioning.json"
        place.write_text(json.dumps(rates, indent=1) + "\n")
        sys.exit()
    if given.pocket is not None:
        torch.set_num_threads(given.threads)
        print(json.dumps(cells(given.pocket, given.repeats), indent=1))
        sys.exit()
    result = main(given)
    print(json.dumps(result, indent=1))
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / "model.json").write_text(json.dumps(result, indent=1) + "\n")
