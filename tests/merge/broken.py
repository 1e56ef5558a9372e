"""A base and two experts, and the ways to break them that `doctor` has a name for."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

import merge
from merge.tools.diagnose.report import Report, doctor

StateDict = dict[str, Tensor]
SHAPES = {
    "encoder.embed.weight": (96, 32),
    "encoder.fc1.weight": (64, 32),
    "encoder.fc1.bias": (64,),
    "encoder.fc2.weight": (32, 64),
    "encoder.norm.weight": (32,),
    "classifier.weight": (40, 32),
    "classifier.bias": (40,),
}


def weights(seed: int) -> StateDict:
    """A small model as one training would leave it."""
    generator = torch.Generator().manual_seed(seed)
    made = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in SHAPES.items()}
    made["encoder.norm.weight"] += 1
    return made


def tuned(base: StateDict, seed: int, size: float = 0.1) -> StateDict:
    """The base moved by `size` of each tensor's norm in a direction of its own."""
    generator = torch.Generator().manual_seed(seed)
    result: StateDict = {}
    for name, value in base.items():
        step = torch.randn(value.shape, generator=generator)
        result[name] = value + step * (size * value.norm() / step.norm())
    return result


@dataclass
class World:
    """A base and two experts, healthy until a case breaks them."""

    base: StateDict = field(default_factory=lambda: weights(0))
    vqa: StateDict = field(init=False)
    caption: StateDict = field(init=False)

    def __post_init__(self) -> None:
        self.vqa, self.caption = tuned(self.base, 1), tuned(self.base, 2)

    def add(self, name: str, vqa: Tensor, caption: Tensor) -> None:
        self.base[name], self.vqa[name], self.caption[name] = vqa.clone(), vqa, caption

    def examine(self, folder: Path, based: bool = True, **options: object) -> Report:
        paths = [
            merge.save_checkpoint(getattr(self, name), folder / f"{name}.safetensors") for name in ("vqa", "caption")
        ]
        base = merge.save_checkpoint(self.base, folder / "pretrained.safetensors") if based else None
        return doctor(paths, base, **options)  # type: ignore[arg-type]


def missing(w: World) -> None:
    del w.caption["encoder.norm.weight"]


def prefixed(w: World) -> None:
    w.caption = {f"module.{name}": value for name, value in w.caption.items()}


def other_head(w: World) -> None:
    w.caption["classifier.weight"], w.caption["classifier.bias"] = torch.randn(7, 32), torch.randn(7)


def other_width(w: World) -> None:
    w.caption["encoder.fc2.weight"] = torch.randn(32, 48)


def half(w: World) -> None:
    w.caption = {name: value.half() for name, value in w.caption.items()}


def other_buffer(w: World) -> None:
    w.add("encoder.position_ids", torch.arange(8), torch.arange(8) + 1)


def other_integers(w: World) -> None:
    w.add("encoder.position_ids", torch.arange(8), torch.arange(8, dtype=torch.int32))


def no_integers(w: World) -> None:
    w.add("encoder.steps", torch.arange(8), torch.arange(8) * 1.0)


def quantised(w: World) -> None:
    codes = torch.randint(-128, 127, (64, 64), dtype=torch.int8)
    w.add("encoder.packed", codes, codes.flip(0))


def eight_bit_floats(w: World) -> None:
    codes = torch.randn(64, 64).to(torch.float8_e4m3fn)
    w.add("encoder.packed", codes, tuned({"x": codes.float()}, 3)["x"].to(torch.float8_e4m3fn))


def quantised_one(w: World) -> None:
    w.add("encoder.packed", torch.randn(64, 64), torch.randint(-128, 127, (64, 64), dtype=torch.int8))


def infinite(w: World) -> None:
    w.caption["encoder.fc1.weight"][3, 4:6] = torch.tensor([math.inf, math.nan])


def unrelated(w: World) -> None:
    w.caption = weights(7)


def permuted(w: World) -> None:
    w.vqa, w.caption = tuned(w.base, 1, 0.01), tuned(w.base, 2, 0.01)
    order = {size: torch.randperm(size, generator=torch.Generator().manual_seed(size)) for size in (32, 64)}
    model, (width, hidden) = w.caption, (order[32], order[64])
    model["encoder.embed.weight"] = model["encoder.embed.weight"][:, width]
    model["encoder.fc1.weight"] = model["encoder.fc1.weight"][hidden][:, width]
    model["encoder.fc1.bias"] = model["encoder.fc1.bias"][hidden]
    model["encoder.fc2.weight"] = model["encoder.fc2.weight"][width][:, hidden]
    model["encoder.norm.weight"] = model["encoder.norm.weight"][width]
    model["classifier.weight"] = model["classifier.weight"][:, width]


def new_head(w: World) -> None:
    w.caption["classifier.weight"] = weights(9)["classifier.weight"]
    w.vqa["classifier.weight"] = tuned(w.base, 8)["classifier.weight"]


def rescaled(w: World) -> None:
    w.caption["encoder.fc1.weight"] *= 5
    w.caption["encoder.fc2.weight"] /= 5


def rescaled_all(w: World) -> None:
    w.caption = {name: 3 * value for name, value in w.caption.items()}


def far(w: World) -> None:
    w.caption = tuned(w.base, 2, 1.2)


def far_without_base(w: World) -> None:
    w.vqa, w.caption = tuned(w.base, 1, 1.2), tuned(w.base, 2, 1.2)


def untrained(w: World) -> None:
    w.caption = {name: value.clone() for name, value in w.base.items()}


def duplicate(w: World) -> None:
    w.caption = {name: value.clone() for name, value in w.vqa.items()}


def opposed(w: World) -> None:
    w.caption = {name: value - 0.7 * (w.vqa[name] - value) for name, value in w.base.items()}


def same_task(w: World) -> None:
    w.caption = {name: value + 0.7 * (w.vqa[name] - value) for name, value in w.base.items()}


def zeroed(w: World) -> None:
    w.caption["encoder.fc2.weight"].zero_()


def filled(w: World) -> None:
    w.caption["encoder.fc2.weight"].fill_(0.1)


def flat_bias(w: World) -> None:
    w.caption["encoder.fc1.bias"].fill_(0.1)


def batchnorm(w: World, mean: float = 0.02, spread: float = 1.1) -> None:
    steps = torch.linspace(0.5, 2, 16)
    w.add("encoder.bn.running_mean", steps, steps + mean * steps.sqrt())
    w.add("encoder.bn.running_var", steps, steps * spread)
    w.add("encoder.bn.num_batches_tracked", torch.tensor(10), torch.tensor(30))


def batchnorm_shifted(w: World) -> None:
    batchnorm(w, mean=1.0)


def batchnorm_spread(w: World) -> None:
    batchnorm(w, spread=3.0)


def frozen(w: World) -> None:
    w.vqa["encoder.embed.weight"] = w.caption["encoder.embed.weight"] = w.base["encoder.embed.weight"]


BROKEN = [
    (missing, "refuse", "names-differ", "caption lacks 1 tensor: encoder.norm.weight", "keep='encoder.norm.*'"),
    (
        prefixed,
        "refuse",
        "names-prefixed",
        "names of caption hold 'module.'",
        "rename='caption:module.='",
    ),
    (other_head, "refuse", "heads-differ", "[40, 32] in base, vqa and [7, 32] in caption", "keep='classifier.*'"),
    (other_width, "refuse", "shapes-differ", "[32, 64] in base, vqa and [32, 48] in caption", "'encoder.fc2.*'"),
    (half, "refuse", "dtypes-differ", "7 tensors are float32 in base, vqa and float16 in caption", "dtype='float32'"),
    (other_buffer, "refuse", "integers-differ", "1 integer tensor of other values", "keep='encoder.position_ids'"),
    (other_integers, "refuse", "dtypes-differ", "int64 in base, vqa and int32 in caption", "integers are never merged"),
    (no_integers, "refuse", "dtypes-differ", "int64 in base, vqa and float32 in caption", "integers are never merged"),
    (quantised, "refuse", "codes-differ", "1 int8 in base, vqa, caption: encoder.packed", "before quantisation"),
    (eight_bit_floats, "note", "eight-bit-floats", "1 tensor of float8_e4m3fn", "16-bit checkpoints"),
    (quantised_one, "refuse", "codes-differ", "1 int8 in caption: encoder.packed", "before quantisation"),
    (
        infinite,
        "refuse",
        "not-finite",
        "caption has infinite or NaN values in 1 tensor: encoder.fc1.weight (2)",
        "",
    ),
    (
        unrelated,
        "warn",
        "unrelated-weights",
        "; vqa and caption: median cosine 0.01 over 4",
        "finetuned from one ancestor",
    ),
    (permuted, "warn", "permuted-units", "; vqa and caption: 4 of 4 matrices", "2209.04836"),
    (new_head, "warn", "parts-unrelated", "vqa and caption: 1 of 4 matrices with cosine", "'classifier.weight'"),
    (rescaled, "warn", "scales-differ", "encoder.fc1.weight x 5, encoder.fc2.weight x 0.2", "a scale folded"),
    (rescaled_all, "warn", "scales-differ", "vqa and caption: 4 of 4 matrices with another norm", "a scale folded"),
    (far, "warn", "far-apart", "caption is 1.20 times the base's norm away from it (bound 1)", "fewer steps"),
    (untrained, "warn", "equal-to-base", "caption equals the base in all tensors", "never finetuned"),
    (duplicate, "warn", "equal-inputs", "vqa and caption are equal in all 7 tensors", "one of them is enough"),
    (opposed, "warn", "task-vectors-opposed", "vqa and caption: cosine -1.00", "a share near an end"),
    (same_task, "note", "task-vectors-agree", "vqa and caption: cosine 1.00", "counts it twice"),
    (zeroed, "warn", "constant-matrices", "encoder.fc2.weight in caption", "put the input that trained them first"),
    (filled, "warn", "constant-matrices", "encoder.fc2.weight in caption", "put the input that trained them first"),
    (flat_bias, "note", "constant-vectors", "encoder.fc1.bias in caption", "put the input"),
    (batchnorm, "note", "batchnorm-averaged", "1 layer with running statistics", "recalibrate"),
    (
        batchnorm_shifted,
        "warn",
        "batchnorm-apart",
        "means are 0.98 standard deviations apart",
        "from:NAME",
    ),
    (batchnorm_spread, "warn", "batchnorm-apart", "variances differ by a factor of 3.00", "recalibrate"),
    (frozen, "note", "frozen-tensors", "1 of 7 tensors are equal in all: encoder.embed.weight", "bit by bit"),
]
Break = Callable[[World], None]
