"""What the blocks of each page find when they run: small files of the names that they use, and a few names."""

from __future__ import annotations

import json
import runpy
import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import merge
from tests import ROOT

Names = dict[str, Any]
TEMPLATE = ROOT / "experiments" / "results" / "templates" / "study.txt"


def network() -> nn.Module:
    """A small network whose layers have names, as those of people's models."""
    layers = {"embed": nn.Linear(6, 16), "hidden": nn.Linear(16, 16), "head": nn.Linear(16, 4)}
    return nn.Sequential(OrderedDict(layers))


def finetuned(suffix: str, *names: str) -> nn.Module:
    """Write checkpoints a little away from one ancestor, `pretrained` the ancestor itself, and give a model."""
    torch.manual_seed(0)
    model = network()
    ancestor = {name: value.clone() for name, value in model.state_dict().items()}
    for name in names:
        far = 0 if name == "pretrained" else 0.01
        state = {key: value + far * torch.randn_like(value) for key, value in ancestor.items()}
        merge.save_checkpoint(state, f"{name}{suffix}")
    return model


def three(suffix: str = ".safetensors") -> Names:
    """Two experts and what they were finetuned from."""
    model = finetuned(suffix, "vqa", "caption", "pretrained")
    return {"model": model, "score": lambda model: model(torch.ones(1, 6)).sum().item(), "device": "cpu"}


def digits() -> Names:
    """The experts that `study new` trains, trained once: its study finds them."""
    pytest.importorskip("sklearn")
    source = Path("made_before.py")
    shutil.copy(TEMPLATE, source)
    given = runpy.run_path(str(source))
    for file in Path("digits_experts").iterdir():
        shutil.copy(file, ".")

    def score(model: nn.Module, task: str, split: str) -> float:
        with torch.no_grad():
            return float(given["score"](task, model.eval(), split).float().mean())

    return {"model": given["model"](), "score": score}


def batchnorm() -> Names:
    """Two models with BatchNorm, and inputs."""

    def make_model(file: str | None = None) -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        if file:
            model.load_state_dict(merge.load_checkpoint(file))
        return model.eval()

    for seed, name in enumerate(("upright", "turned")):
        torch.manual_seed(seed)
        merge.save_checkpoint(make_model(), f"{name}.pt")
    return {"model": make_model(), "make_model": make_model, "batches": [torch.randn(64, 4) for _ in range(2)]}


def eight_bits() -> Names:
    """Two checkpoints of 8-bit floats with a scale."""
    for name, scale in (("a", 1.0), ("b", 2.0)):
        codes = torch.eye(4).to(torch.float8_e4m3fn)
        merge.save_checkpoint({"l.weight": codes, "l.weight_scale_inv": torch.tensor(scale)}, f"{name}-fp8.safetensors")
    return {}


def fairseq() -> Names:
    """Two training files as fairseq writes them."""
    for number, name in enumerate(("vqa", "caption")):
        Path(name).mkdir()
        state = {"encoder.weight": torch.full((2, 2), float(number)), "encoder.version": torch.tensor([3.0])}
        file = {
            "args": None,
            "cfg": {"task": name},
            "model": state,
            "optimizer_history": [],
            "extra_state": {"epoch": 3},
        }
        torch.save({**file, "last_optimizer_state": {"state": {}}}, f"{name}/checkpoint_best.pt")
    return {}


def mergekit() -> Names:
    """Three files, and PyYAML."""
    pytest.importorskip("yaml")
    return three()


def methods() -> Names:
    """A model of linear layers, batches with labels, and the statistics of a second expert."""
    model = finetuned(".pt", "vqa", "caption")
    batches = [torch.randn(8, 6) for _ in range(2)]

    def losses(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).square().mean(1)

    merge.statistics("regmean", model, batches, output="caption-products.safetensors")
    return {"model": model, "batches": batches, "losses": losses}


def adapters() -> Names:
    """Two LoRA folders with their base, and a model finetuned as a whole with its own."""
    torch.manual_seed(0)
    base = {"model.layer.weight": torch.randn(12, 8), "lm_head.weight": torch.randn(5, 8)}
    merge.save_checkpoint(base, "model.safetensors")
    merge.save_checkpoint(base, "base.safetensors")
    change = torch.randn(12, 2) @ torch.randn(2, 8)
    merge.save_checkpoint({**base, "model.layer.weight": base["model.layer.weight"] + change}, "tuned.safetensors")
    for name in ("vqa_lora", "caption_lora"):
        Path(name).mkdir()
        factors = {"lora_A": torch.randn(4, 8), "lora_B": torch.randn(12, 4)}
        state = {f"base_model.model.model.layer.{key}.weight": value for key, value in factors.items()}
        merge.save_checkpoint(state, Path(name, "adapter_model.safetensors"))
        settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["layer"]}
        Path(name, "adapter_config.json").write_text(json.dumps(settings))
    return {}


def layers() -> Names:
    """Models of 24 layers, and a recipe of mergekit that stacks some."""
    pytest.importorskip("yaml")
    parts = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
    for seed, name in enumerate(("small.safetensors", "one.pt", "two.pt")):
        torch.manual_seed(seed)
        state = {f"model.layers.{number}.{part}": torch.randn(2, 2) for number in range(24) for part in parts}
        merge.save_checkpoint({"embed": torch.ones(3, 2), **state, "norm": torch.ones(2)}, name)
    ranges = [{"sources": [{"model": "small.safetensors", "layer_range": span}]} for span in ([0, 16], [8, 24])]
    Path("recipe.yml").write_text(json.dumps({"merge_method": "passthrough", "slices": ranges}))
    return {"merge": merge}


def series() -> Names:
    """A run of six steps, two cumulative averages, and three files for a difference."""
    finetuned(".pt", "caption", "vqa", "pretrained", "epoch-20", "epoch-30")
    Path("run").mkdir()
    finetuned(".safetensors", *(f"run/step={step}" for step in range(6)))
    return {}


def evaluators() -> Names:
    """Arrays, texts, and a tokenizer that knows letters."""
    pixels, labels = np.zeros((4, 2), np.float32), np.zeros(4, np.int64)
    given = {"x": pixels, "x_val": pixels, "x_test": pixels, "y": labels, "y_val": labels, "y_test": labels}
    return {**given, "texts": ["a b"], "more_texts": ["b a"], "tokenizer": lambda text: [ord(one) for one in text]}


def nothing() -> Names:
    """A page whose blocks all run in another test, or not at all."""
    return {}


# By page, what its blocks find. A page that is not here has no block that runs.
WORLDS: dict[str, Callable[[], Names]] = {
    "docs/start.md": three,
    "docs/how-to/ratio.md": digits,
    "docs/how-to/quantised.md": eight_bits,
    "docs/how-to/batchnorm.md": batchnorm,
    "docs/how-to/collapse.md": three,
    "docs/how-to/gpus.md": three,
    "docs/how-to/hub.md": nothing,
    "docs/how-to/mergekit.md": mergekit,
    "docs/how-to/fairseq.md": fairseq,
    "docs/adapters.md": adapters,
    "docs/layers.md": layers,
    "docs/series.md": series,
    "docs/methods.md": methods,
    "docs/evaluators.md": evaluators,
}
