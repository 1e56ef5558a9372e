"""Adapters for tests: folders as peft writes them, and a base that they fit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from merge.tools.adapters.folder import Factors

SHAPES = {"encoder.layers.0.q": (6, 5), "decoder.layers.0.v": (4, 7)}


def lora(
    folder: Path,
    seed: int,
    rank: int = 2,
    shapes: Mapping[str, tuple[int, int]] = SHAPES,
    extra: Mapping[str, Tensor] | None = None,
    **config: Any,
) -> Path:
    """An adapter's folder as peft writes it."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {f"base_model.model.{name}": value for name, value in (extra or {}).items()}
    for module, (outputs, inputs) in shapes.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator)
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    fields = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": ["q", "v"], "bias": "none"}
    fields |= {"base_model_name_or_path": "pretrained", "task_type": "CAUSAL_LM", "use_rslora": False, **config}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return folder


def change(factors: Factors) -> Tensor:
    """s B A in float64."""
    return factors.scale * factors.b.double() @ factors.a.double()


def base_of(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(9)
    state = {f"{module}.weight": torch.randn(shape, generator=generator).to(dtype) for module, shape in SHAPES.items()}
    return {"embed.weight": torch.randn(8, 3, generator=generator).to(dtype), **state}
