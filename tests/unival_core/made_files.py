"""Files in the layout of the published ones, in small."""

import argparse
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unival_core.computed import TOKENS, computed_tensors
from unival_core.config import AudioConfig, ResNetConfig, UnivalConfig
from unival_core.model import UnivalModel

# A published file in small: vocabulary, tables and front end as published, everything else narrow.
SMALL = UnivalConfig(
    width=16,
    heads=2,
    ffn=24,
    encoder_layers=1,
    decoder_layers=2,
    image=ResNetConfig(depths=(1, 2), planes=(4, 8), stem=4, classes=5),
    video=ResNetConfig(depths=(1, 1), planes=(4, 8), expansion=2, groups=2, stem=4, kernel=3),
    audio=AudioConfig(channels=(4, 6)),
    code_image_size=256,
)


def published(model: UnivalModel, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """The state dict that the original would have saved."""
    state = {
        name: value.to(dtype) if value.is_floating_point() else value for name, value in model.state_dict().items()
    }
    for name in ("decoder.embed_tokens.weight", "decoder.output_projection.weight"):
        state[name] = state[TOKENS]
    front = "encoder.embed_audios."
    names = ["encoder.token_rp_bucket", "encoder.image_rp_bucket", "decoder.token_rp_bucket", "decoder.image_rp_bucket"]
    names += ["decoder.image_position_idx", f"{front}logmel_extractor.melW"]
    names += [f"{front}spectrogram_extractor.stft.conv_{part}.weight" for part in ("real", "imag")]
    for pattern, compute in computed_tensors(model.config).items():
        for name in (name for name in names if fnmatchcase(name, pattern)):
            value = compute()
            state[name] = value.to(dtype) if value.is_floating_point() else value
    state["encoder.version"] = state["decoder.version"] = torch.tensor([3.0])
    return state


def training_file(path: Path, state: dict[str, Tensor], task: Mapping[str, Any] | None = None, **entries: Any) -> Path:
    """The layout of a published training file; `fields` are further ones of cfg.model, `task` of cfg.task."""
    fields = {"arch": "unival_base", "hop_size": 200, "disable_entangle": True, "encoder_prompt": False}
    fields |= {"image_encoder_name": "timm_resnet", "scale_attn": True, "attn_scale_factor": 2.0, "with_cls": False}
    fields |= entries.pop("fields", {})
    cfg = {"model": argparse.Namespace(**fields), "task": {"_name": "caption", "patch_image_size": 480, **(task or {})}}
    content = {"args": None, "cfg": cfg, "model": state, **entries}
    torch.save({**content, "optimizer_history": [{"num_updates": 7}]}, path)
    return path
