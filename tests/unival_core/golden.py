"""Recorded inputs and outputs of the published model, and the rule that makes the weights they were recorded with."""

import json
import math
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests import ROOT
from unival_core.checkpoint import bare_model
from unival_core.config import UnivalConfig
from unival_core.model import Inputs, UnivalModel

SHARED = ROOT.parent / "shared" / "unival"  # beside the repository where it was developed, absent elsewhere
KEPT = ROOT / "tests" / "data" / "unival"  # slices of the same recordings
TIED = ("decoder.embed_tokens.weight", "decoder.output_projection.weight")


def recorded(name: str, folder: Path = SHARED) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (bool where they were bool) and description of one recording; skips the test where there is none."""
    if not folder.is_dir():
        pytest.skip(f"needs the recordings in {folder}")
    note = json.loads((folder / f"golden_{name}.json").read_text())
    path = folder / f"golden_{name}.safetensors"
    tensors = load_file(path) if path.exists() else {}
    kinds = {key: kind for key, (_, kind) in note.get("tensors", {}).items()}
    tensors = {key: value.bool() if kinds.get(key) == "torch.bool" else value for key, value in tensors.items()}
    if media := note.get("media"):  # the kept recordings redraw them
        generator = torch.Generator().manual_seed(media["seed"])
        tensors[f"in.patch_{media['kind']}s"] = media["scale"] * torch.randn(media["shape"], generator=generator)
    return tensors, note


def weight(name: str, like: Tensor, scale: float = 1.0, salt: str = "") -> Tensor:
    """The recipe's values of one tensor: drawn from a generator seeded by the name, spread by its role."""
    if name in TIED:
        name = "encoder.embed_tokens.weight"
    generator = torch.Generator().manual_seed(zlib.crc32(f"{salt}{name}".encode()))
    shape = tuple(like.shape)
    if name.endswith("running_var"):
        values = 0.5 + torch.rand(shape, generator=generator)
        return values * 400 if name.endswith("bn0.running_var") else values
    normal = torch.randn(shape, generator=generator)
    if name == "encoder.embed_tokens.weight":
        return 0.05 * normal * scale
    if name.endswith("running_mean"):
        return -30 + 5 * normal if name.endswith("bn0.running_mean") else 0.1 * normal
    if "rel_pos_table_list" in name:
        return 0.5 * normal
    if name.endswith(("positions.weight", "type_embedding.weight")):
        return 0.05 * normal
    if name.endswith("bn3.weight"):
        return 0.2 * (1 + 0.1 * normal)
    if len(shape) == 1:
        return 0.02 * normal if name.endswith(".bias") else 1 + 0.1 * normal
    gain = 2.0 if len(shape) > 2 else 1.0
    return normal * math.sqrt(gain / math.prod(shape[1:]))


@torch.no_grad()
def fill(model: nn.Module, scale: float = 1.0, salt: str = "") -> None:
    """Writes the recipe's weights into a model; `scale` multiplies the token matrix."""
    done = set()
    for name, value in model.state_dict().items():
        if value.is_floating_point() and value.data_ptr() not in done:
            value.copy_(weight(name, value, scale, salt))
            done.add(value.data_ptr())


def filled(config: UnivalConfig, scale: float = 1.0) -> UnivalModel:
    """A model in evaluation mode with the recipe's weights; nothing is initialised twice."""
    model = bare_model(config)
    model.to_empty(device="cpu")
    model.tie()
    for name, value in model.named_buffers():
        if not value.is_floating_point():
            model.get_buffer(name).zero_()
    fill(model, scale)
    return model.eval()


def inputs_of(tensors: dict[str, Tensor]) -> Inputs:
    """The encoder's inputs of a recording. Where videos or audios were recorded, its images were only placeholders."""
    kind = next((kind for kind in ("videos", "audios", "images") if f"in.patch_{kind}" in tensors), None)
    media = {kind: tensors[f"in.patch_{kind}"]} if kind else {}
    return Inputs(tokens=tensors["in.src_tokens"], media_mask=tensors.get("in.patch_masks"), **media)
