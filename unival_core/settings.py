"""What a published training file says of its run beyond names and shapes of tensors: the fields of its `cfg`.

Files that were merged or written elsewhere have none, and what was published is taken for granted. A file that says
what this model cannot do is refused, never read as if it were another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from merge import Checkpoint
from unival_core.config import UnivalConfig
from unival_core.errors import UnivalError

HOP = 480  # of a file with an audio network that tells none: the original's default, not what it published (200)
POSITION_STRIDE = 16  # pixels that the original counts per position where it stretches them
OFF = (None, False, 0, "", "none")
# Of cfg.model: what a field may say, if the file has it.
NETWORK: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(("scale_attn", "scale_fc", "scale_heads", "disable_entangle", "share_all_embeddings"), (True,)),
    **dict.fromkeys(("encoder_normalize_before", "decoder_normalize_before", "no_scale_embedding"), (True,)),
    **dict.fromkeys(("layernorm_embedding", "patch_layernorm_embedding", "code_layernorm_embedding"), (True,)),
    **dict.fromkeys(
        ("with_cls", "qk_norm", "scale_resids", "add_mm_type_embedding", "sync_bn", "freeze_batchnorm"), OFF
    ),
    **dict.fromkeys(("adapter", "enable_fusion"), OFF),
    **{f"layernorm_{medium}_embedding": OFF for medium in ("image", "video", "audio")},
    "add_type_embedding": (True,),
    "attn_scale_factor": (2,),
    "image_encoder_name": ("timm_resnet",),
    "video_encoder_name": (*OFF, "all_resnext50", "all_resnext101"),
    "audio_encoder_name": (*OFF, "pann_cnn14"),
}
PROMPT = re.compile(r"\w+_prompt")  # fields of cfg.model that are off, too
# Of cfg.task.
PREPARATION: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(("add_object", "add_caption", "imagenet_default_mean_and_std"), OFF),
    "max_image_size": (512,),
}


@dataclass(frozen=True)
class Settings:
    """The fields of `cfg.model` and `cfg.task`, both empty where a file has no `cfg`; older files have `args` for
    both."""

    model: Mapping[str, Any]
    task: Mapping[str, Any]

    @classmethod
    def of(cls, file: Mapping[str, Any]) -> Settings:
        """Read them from an open checkpoint; a state dict has none."""
        noted = file.noted if isinstance(file, Checkpoint) else {}
        parts = noted["cfg"] if "cfg" in noted else dict.fromkeys(("model", "task"), noted.get("args", {}))
        model, task = (parts.get(name) for name in ("model", "task"))
        return cls(model if isinstance(model, dict) else {}, task if isinstance(task, dict) else {})

    @property
    def vocabulary(self) -> tuple[int, int] | None:
        """Return the number of codes and of bins, where both are told."""
        codes, bins = self.task.get("code_dict_size"), self.task.get("num_bins")
        return (codes, bins) if type(codes) is int and type(bins) is int else None

    def applied(self, config: UnivalConfig, path: str) -> UnivalConfig:
        """Return the config that names and shapes imply, with what else the file says of its network.

        Raises UnivalError with every field that says what this model is not.
        """
        if strange := [*self._strange(config)]:
            advice = "give the config to load it all the same: config=..., --config FILE"
            raise UnivalError(f"{path} was made by another network than this one, {', '.join(strange)}: {advice}")
        if config.audio is not None and self.model:
            config = replace(config, audio=replace(config.audio, hop=int(self.model.get("hop_size") or HOP)))
        if self.model.get("interpolate_position"):
            side = int(self.model.get("orig_patch_image_size") or 256)
            config = replace(config, position_grid=side // POSITION_STRIDE)
        return config

    def _strange(self, config: UnivalConfig) -> Iterator[str]:
        """Yield fields that say something else than the tensors or this model."""
        audio = config.audio
        told: dict[str, tuple[Any, ...]] = {
            **NETWORK,
            **{name: OFF for name in self.model if PROMPT.fullmatch(name)},
            "image_bucket_size": (config.image_bucket,),
            "token_bucket_size": (config.token_bucket,),
            **({"mel_bins": (audio.n_mels,)} if audio else {}),
        }
        heard = {"sample_rate": (audio.sample_rate,), "max_audio_len": (audio.samples,)} if audio else {}
        size = {} if self.vocabulary is None else {"code_dict_size": (config.codes,), "num_bins": (config.bins,)}
        parts = (("model", self.model, told), ("task", self.task, {**PREPARATION, **heard, **size}))
        for part, values, allowed in parts:
            for name, value in values.items():
                if name in allowed and value not in allowed[name]:
                    known = " or ".join(str(one) for one in allowed[name] if one not in OFF or allowed[name] is OFF)
                    yield f"cfg.{part}.{name} is {value}, not {'off' if allowed[name] is OFF else known}"

    def sizes(self, original: str, medium: str | None) -> dict[str, int]:
        """Return `side` and `frames` as the file was trained, where it was on the task that the original calls so."""
        names = {"image": {"side": "patch_image_size"}, "video": {"side": "patch_frame_size", "frames": "num_frames"}}
        if not original or self.task.get("_name") != original:
            return {}
        found = {ours: self.task.get(theirs) for ours, theirs in names.get(medium or "", {}).items()}
        return {name: value for name, value in found.items() if type(value) is int and value > 0}
