"""`adapter_config.json` as peft writes it: what is understood, what changes nothing, and what is refused."""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merge.errors import MergeError

CONFIG = "adapter_config.json"
# What the sum takes into account, what says where an adapter comes from or which modules it has (its tensors tell), and
# what matters in training only. Any other key with a value is refused: it may change what is computed.
_UNDERSTOOD = {
    *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out"),
    *("trainable_token_indices", "lora_bias"),
}
_NEUTRAL = {
    *("task_type", "base_model_name_or_path", "revision", "auto_mapping", "peft_version", "inference_mode"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
    *("lora_dropout", "eva_config", "qalora_group_size", "megatron_core", "runtime_config", "merge_weights"),
    *("lora_dtype", "lorap_lr_ratio", "lorap_emb_lr"),
}
# Starts that leave the base as it is: the change is B A from the first step on.
_STARTS = {"true", "gaussian", "eva", "orthogonal", "mica"}
_CHANGED_BASE = "the start took a part out of the base's weights, so B A is no change of the base that was published"
_CONVERT = "save it again in peft with path_initial_model_for_weight_conversion=..., which makes it a plain LoRA"
_ROUNDED_BASE = "the factors make up for a base that was quantised, so B A is no change of the base that was published"
_MEANINGS = {
    "use_dora": "DoRA rescales whole columns, which is not a sum of low-rank changes",
    "bias": "biases of the base were trained too",
    "use_qalora": "the input is pooled before A",
    "layer_replication": "the base's layers are repeated",
    "alora_invocation_tokens": "the adapter acts on some tokens only",
    "megatron_config": "its layers are split over devices",
    "kasa_config": "KaSA cuts the base's weights and puts a diagonal between A and B",
    "use_kasa": "KaSA cuts the base's weights and puts a diagonal between A and B",
    "monteclora_config": "MonteCLoRA draws the factors at random",
    "use_bdlora": "BD-LoRA keeps the blocks of block-diagonal factors only",
    "arrow_config": "Arrow chooses between adapters for every token",
    "velora_config": "VeLoRA keeps buffers of its training beside the factors",
    "target_parameters": "the factors change parameters inside modules, several at a time",
    "corda_config": _CHANGED_BASE,
    "lora_ga_config": _CHANGED_BASE,
    "loftq_config": _ROUNDED_BASE,
    "ensure_weight_tying": "one change serves two tied layers",
    "enable_lora": "the factors change some parts of a fused layer only",
}
# peft tries expressions on every module: these bounds keep each try short, whatever the expression and the name.
_MOST_CHOICES, _LONGEST_NAME = 3, 200


def read_config(folder: Path) -> dict[str, Any]:
    """Read the configuration of a folder's adapter. Raises MergeError where it is broken or no plain LoRA's."""
    path = folder / CONFIG
    if not path.is_file():
        raise MergeError(f"{folder}: not the folder of an adapter: it has no {CONFIG}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind, rank, alpha = config["peft_type"], config["r"], config["lora_alpha"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise MergeError(f"{path}: not the configuration of a LoRA adapter: {type(error).__name__}: {error}") from error
    kinds = {"rank_pattern": dict, "alpha_pattern": dict, "modules_to_save": list}
    for key, wanted in kinds.items():
        if not isinstance(config.get(key) or wanted(), wanted):
            raise MergeError(f"{path}: {key} is {str(config[key])[:80]}, not a {wanted.__name__}")
    if kind != "LORA":
        raise MergeError(f"{path}: peft_type is {kind!r}; only LORA can be merged")
    if type(rank) is not int or rank < 1 or not _is_finite(alpha):
        told = f"r is {str(rank)[:80]} and lora_alpha {str(alpha)[:80]}"
        raise MergeError(f"{path}: {told}; a whole number above 0 and a number are wanted")
    _refuse(folder, config)
    return config


def _is_finite(alpha: Any) -> bool:
    return isinstance(alpha, (int, float)) and abs(alpha) < 1e30  # whole numbers of JSON have no largest


def _refuse(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse what is no plain LoRA, the start first: it says most about the configurations beside it."""
    start = str(config.get("init_lora_weights")).lower()
    advice = "merge it into its base with the tool that made it, and merge the models"
    if config.get("init_lora_weights") and start not in _STARTS:
        meaning = _ROUNDED_BASE if start == "loftq" else _CHANGED_BASE
        if start.startswith(("pissa", "olora", "corda", "lora_ga")):
            advice = _CONVERT
        elif start != "loftq":
            meaning = "a start that is not known here may change the base"
        raise MergeError(f"{folder}: init_lora_weights is {start[:80]!r}: {meaning}; only plain LoRA: {advice}")
    for key, value in config.items():
        if not value or value == "none" or key in _UNDERSTOOD | _NEUTRAL or key == "init_lora_weights":
            continue
        meaning = _MEANINGS.get(key, "not known here, it may change what is computed")
        told = f"{key[:80]} is {str(value)[:80]!r}" if isinstance(value, str) else f"{key[:80]} is {str(value)[:80]}"
        raise MergeError(f"{folder}: {told}: {meaning}; only plain LoRA can be merged: {advice}")


def scale_of(config: Mapping[str, Any], module: str, rank: int) -> float:
    """Give the number s of `s B A`. Raises MergeError for an alpha that is no number."""
    alpha = _pattern(config, "alpha_pattern", module, config["lora_alpha"])
    if not _is_finite(alpha):
        told = repr(alpha)[:80]
        raise MergeError(f"{CONFIG}: {module} has the alpha {told} by alpha_pattern, which is no finite number")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def rank_of(config: Mapping[str, Any], module: str) -> Any:
    """Give the rank that the configuration gives a module."""
    return _pattern(config, "rank_pattern", module, config["r"])


def _pattern(config: Mapping[str, Any], key: str, module: str, default: Any) -> Any:
    """A setting by module, as peft resolves it: the first expression that fits the module's name or its end."""
    for pattern, value in (config.get(key) or {}).items():
        expression, choices = _expression(key, pattern)
        if choices and len(module) > _LONGEST_NAME:
            raise MergeError(f"{CONFIG}: {module[:80]}... is too long a name for the pattern {pattern[:80]!r} of {key}")
        if expression.match(module):
            return value
    return default


@functools.lru_cache(maxsize=8192)
def _expression(key: str, pattern: str) -> tuple[re.Pattern[str], int]:
    """A pattern as peft reads it and the number of its repetitions and choices, which are bounded.

    Raises MergeError for what is no regular expression and for what could be tried for ever.
    """
    plain = re.sub(r"\\.|\(\?[:!=]", lambda found: "(" if found[0][0] == "(" else "_", pattern)
    choices = sum(map(plain.count, "*+?{")) + min(plain.count("("), plain.count("|"))
    if choices > _MOST_CHOICES or re.search(r"\)[*+{]", plain):
        raise MergeError(
            f"{CONFIG}: the pattern {pattern[:80]!r} of {key} has more than {_MOST_CHOICES} repetitions or choices, or "
            "repeats a group: give the names of the modules there instead"
        )
    try:
        return re.compile(rf"(.*\.)?({pattern})$"), choices
    except (re.error, RecursionError, OverflowError) as error:
        raise MergeError(f"{CONFIG}: the pattern {pattern[:80]!r} of {key} is no regular expression") from error
