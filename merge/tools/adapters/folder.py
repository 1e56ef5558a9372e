"""An adapter's folder as peft writes it: `adapter_config.json` and the factors in `adapter_model.safetensors`."""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from merge.checkpoint.atomic import replacing
from merge.checkpoint.digest import digest
from merge.checkpoint.open import Checkpoint, open_checkpoint
from merge.checkpoint.owned import CARD
from merge.checkpoint.save import save_checkpoint
from merge.errors import MergeError
from merge.tools.adapters.configuration import CONFIG, rank_of, read_config, scale_of
from merge.tools.adapters.rows import COPY, TOKENS, Rows, read_rows

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
# The ends of a module's two tensors: of a matrix or convolution, and of an embedding (whose change is transposed).
LINEAR = (".lora_A.weight", ".lora_B.weight")
EMBEDDING = (".lora_embedding_A", ".lora_embedding_B")
BIAS = ".lora_B.bias"


@dataclass(frozen=True)
class Factors:
    """One module's change: `scale * B @ A`, with A [rank, inputs] and B [outputs, rank] (convolutions: more axes).

    With a bias of B [outputs] (peft's `lora_bias`) the module's own bias changes by `scale * bias`.
    """

    a: Tensor
    b: Tensor
    scale: float
    ends: tuple[str, str] = LINEAR
    bias: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.a.shape[0]


@dataclass(frozen=True)
class Adapter:
    """An open adapter.

    Attributes:
        name: the word used for its share.
        config: `adapter_config.json` as it is.
        modules: the factors by module, named as in the base.
        saved: tensors trained whole (peft's `modules_to_save`), named as in the base.
        checkpoint: the file of the tensors.
        rows: trained rows of embeddings (peft's `trainable_token_indices`), by module.
        copies: the base's own weight beside an embedding's factors, by module.
    """

    name: str
    config: Mapping[str, Any]
    modules: Mapping[str, Factors]
    saved: Mapping[str, Tensor]
    checkpoint: Checkpoint
    rows: Mapping[str, Rows] = field(default_factory=dict[str, Rows])
    copies: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    @property
    def base(self) -> str:
        """What the base is called; empty where the adapter does not say."""
        return str(self.config.get("base_model_name_or_path") or "")


def open_adapter(folder: str | Path, name: str = "") -> Adapter:
    """Open a folder of peft's layout; factors are read on access.

    Raises MergeError for what is missing or broken, and for kinds of adapters that are no plain LoRA, with the reason.
    """
    folder = Path(folder)
    config = read_config(folder)
    file = next((folder / file for file in (WEIGHTS, "adapter_model.bin") if (folder / file).is_file()), None)
    if file is None:
        raise MergeError(f"{folder}: has no {WEIGHTS}")
    checkpoint = open_checkpoint(file)
    modules: dict[str, Factors] = {}
    saved, copies, tokens = dict[str, Tensor](), dict[str, Tensor](), dict[str, Tensor]()
    for key in checkpoint:
        if not key.startswith(PREFIX):
            raise MergeError(f"{file}: the tensor {key!r} does not begin with {PREFIX!r}, as peft's do")
        short = key.removeprefix(PREFIX)
        ends = next((ends for ends in (LINEAR, EMBEDDING) if short.endswith(ends)), None)
        if ends is not None:
            module = short.removesuffix(ends[0]).removesuffix(ends[1])
            if module not in modules:
                modules[module] = _factors(file, checkpoint, config, module, ends)
        elif short.endswith(BIAS):
            module = short.removesuffix(BIAS)
            modules[module] = replace(_factors(file, checkpoint, config, module, LINEAR), bias=checkpoint[key])
        elif short.endswith(COPY):
            copies[short.removesuffix(COPY)] = checkpoint[key]
        elif short.endswith(TOKENS):
            tokens[short.removesuffix(TOKENS)] = checkpoint[key]
        elif ".lora_" in short or ".base_layer." in short or ".token_adapter." in short:
            raise MergeError(f"{file}: {key!r} is neither factor of a plain LoRA nor a module of its own")
        else:
            saved[short] = checkpoint[key]
    if not modules:
        raise MergeError(f"{file}: holds no LoRA factors; its tensors look like {', '.join(list(checkpoint)[:3])}")
    for module in sorted(copies.keys() - modules.keys()) + sorted(tokens.keys() & modules.keys()):
        told = "a copy of the base's weight and no factors" if module in copies else "trained rows beside factors"
        raise MergeError(f"{file}: {module} has {told}, which is no change that can be merged")
    rows = read_rows(folder, config, tokens)
    return Adapter(name or folder.resolve().name, config, modules, saved, checkpoint, rows, copies)


def _factors(
    file: Path, checkpoint: Checkpoint, config: Mapping[str, Any], module: str, ends: tuple[str, str]
) -> Factors:
    found = [checkpoint[PREFIX + module + end] for end in ends if PREFIX + module + end in checkpoint]
    if len(found) < 2:
        raise MergeError(f"{file}: {module} has one of its factors and lacks the other ({' and '.join(ends)})")
    a, b = found
    rank = rank_of(config, module)
    if a.ndim < 2 or b.ndim < 2 or a.shape[0] != rank or b.shape[1] != rank or not a.is_floating_point():
        told = f"{list(a.shape)} and {list(b.shape)}"
        raise MergeError(f"{file}: {module} has factors of shapes {told}, which do not fit its rank {rank}")
    return Factors(a, b, scale_of(config, module, rank), ends)


def save_adapter(
    modules: Mapping[str, Factors],
    saved: Mapping[str, Tensor],
    like: Mapping[str, Any],
    output: Path,
    *,
    metadata: Mapping[str, str] | None = None,
    card: Callable[[str], str] | None = None,
    others: Collection[str] = (),
    overwrite: bool = False,
) -> Path:
    """Write an adapter of scale 1, with the other settings of the configuration `like`.

    Modules are named whole in the configuration, so that peft finds exactly these; where the ends of `others`, the
    base's other modules, are such names too, by an expression. `card` gives the text of its model card by the digest of
    the tensors. Raises MergeError.
    """
    rank = max(factors.rank for factors in modules.values())
    config = {**like, "r": rank, "lora_alpha": rank, "use_rslora": False, "target_modules": sorted(modules)}
    if any(name.endswith(f".{module}") for module in modules for name in others):
        config["target_modules"] = "|".join(re.escape(module) for module in sorted(modules))
    # The scale is alpha over rank: 1 where both patterns say the same.
    ranks = {f"^{re.escape(module)}": factors.rank for module, factors in modules.items() if factors.rank != rank}
    config |= {"rank_pattern": ranks, "alpha_pattern": ranks}
    if any(factors.bias is not None for factors in modules.values()) or config.get("lora_bias"):
        config["lora_bias"] = any(factors.bias is not None for factors in modules.values())
    # The start of a training: peft makes it again before it reads the factors, and some starts refuse some ranks.
    config["init_lora_weights"] = True
    unused = ("layers_to_transform", "layers_pattern", "exclude_modules", "eva_config")
    config |= {key: None for key in unused if key in like}
    tensors = {PREFIX + name: value for name, value in saved.items()}
    for module, factors in modules.items():
        for end, value in zip(factors.ends, (factors.a, factors.b), strict=True):
            tensors[PREFIX + module + end] = value
        if factors.bias is not None:
            tensors[PREFIX + module + BIAS] = factors.bias
    size = sum(value.numel() * value.dtype.itemsize for value in tensors.values())
    with replacing(output, size, folder=True, overwrite=overwrite) as partial:
        save_checkpoint(tensors, partial / WEIGHTS, metadata={"format": "pt", **(metadata or {})})
        (partial / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if card is not None:
            (partial / CARD).write_text(card(digest(tensors)), encoding="utf-8")
    return output
