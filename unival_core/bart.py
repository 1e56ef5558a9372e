"""The start of pretraining: BART's weights, placed as the original places them (arXiv 1910.13461; 2307.16184).

Names that BART lacks keep a new model's values: visual networks, norms inside layers, relative positions. Rows of the
vocabulary go by index and not by token: the dictionaries agree up to `<mask>`, behind which BART has made-up words.
Its text positions are copied unchanged, too, though BART counted them from 2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from unival_core.computed import TIED, TOKENS, is_computed
from unival_core.config import UnivalConfig
from unival_core.errors import UnivalError
from unival_core.model import UnivalModel

NORMS = {  # what older files number
    "encoder": ("self_attn_layer_norm", "final_layer_norm"),
    "decoder": ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),
}


def is_bart(file: Mapping[str, Tensor]) -> bool:
    """Tell whether names are those of BART: an encoder and a decoder of text, without what UnIVAL adds to a layer."""
    known = {TOKENS, "encoder.embed_positions.weight", "encoder.layernorm_embedding.weight"}
    return known <= set(file) and not any(".c_attn" in name or ".embed_images." in name for name in file)


def from_bart(file: Mapping[str, Tensor], config: UnivalConfig, path: str) -> UnivalModel:
    """Return a new model with BART's weights where it has them, in evaluation mode.

    Raises UnivalError for names that a model has no place for, but for classification heads, and for shapes that
    differ; a vocabulary larger than the model's is one.
    """
    model = UnivalModel(config)
    fresh = model.state_dict()
    tensors: dict[str, Tensor] = {}
    for name in file:
        if not is_computed(name) and not name.startswith("classification_heads."):
            tensors |= {ours: part.float() for ours, part in placed(name, file[name]).items()}
    tensors[TOKENS] = with_rows(tensors[TOKENS], config.vocabulary)
    tensors |= dict.fromkeys(TIED, tensors[TOKENS])
    strange = sorted(name for name in tensors if name not in fresh or fresh[name].shape != tensors[name].shape)
    if strange:
        told = [f"{name} {tuple(tensors[name].shape)}" for name in strange[:5]]
        raise UnivalError(f"{path}: a model of this config has no place for {', '.join(told)}: give its config")
    model.load_state_dict(tensors, strict=False)
    return model.eval()


def placed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Return a tensor of BART under our names, fused projections apart."""
    if (numbered := re.fullmatch(r"((encoder|decoder)\.layers\.\d+)\.layer_norms\.(\d)\.(\w+)", name)) is not None:
        layer, stack, number, kind = numbered.groups()
        return {f"{layer}.{NORMS[stack][int(number)]}.{kind}": tensor}
    if (fused := re.fullmatch(r"(.+)\.in_proj_(weight|bias)", name)) is not None:
        parts = tensor.chunk(3)
        return {f"{fused[1]}.{letter}_proj.{fused[2]}": part for letter, part in zip("qkv", parts, strict=True)}
    return {name: tensor}


def with_rows(matrix: Tensor, rows: int) -> Tensor:
    """Return a token matrix with so many rows: new ones at the end are normal(0, width^-0.5)."""
    if len(matrix) >= rows:
        return matrix
    more = torch.empty(rows - len(matrix), matrix.shape[1]).normal_(std=matrix.shape[1] ** -0.5)
    return torch.cat((matrix, more.to(matrix)))
