"""UnIVAL: one encoder-decoder for image, video, audio and text (arXiv 2307.16184).

    import unival_core

    model = unival_core.load_model("vqa.safetensors")
    tokenizer = unival_core.load_tokenizer("vqa.safetensors", model.config)
    unival_core.evaluate(model, dataset).scores["VQA accuracy"].value

Names are loaded on first use, so that importing the package does not import torch. Data sets, metrics and training
have doors of their own: `unival_core.data`, `unival_core.metrics`, `unival_core.training`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from unival_core.errors import UnivalError

if TYPE_CHECKING:
    from unival_core.attention import Attention
    from unival_core.checkpoint import COMPUTED, config_of, load_model, save_model
    from unival_core.config import CONFIGS, UnivalConfig
    from unival_core.decoding import GenerationOptions
    from unival_core.ensemble import Ensemble
    from unival_core.evaluation import Prediction, evaluate, predict
    from unival_core.generation import generate
    from unival_core.inputs import MEDIA, Inputs
    from unival_core.metrics import METRICS
    from unival_core.model import Encoder, UnivalModel
    from unival_core.permutations import align_checkpoint
    from unival_core.tasks import TASKS, find_task
    from unival_core.training.train import train
    from unival_core.vocabulary import PUBLISHED_FILES, TOKENIZER_KEY, Tokenizer, load_tokenizer

_HOME = {
    "attention": ("Attention",),
    "checkpoint": ("COMPUTED", "config_of", "load_model", "save_model"),
    "config": ("CONFIGS", "UnivalConfig"),
    "decoding": ("GenerationOptions",),
    "ensemble": ("Ensemble",),
    "evaluation": ("Prediction", "evaluate", "predict"),
    "generation": ("generate",),
    "inputs": ("MEDIA", "Inputs"),
    "metrics": ("METRICS",),
    "model": ("Encoder", "UnivalModel"),
    "permutations": ("align_checkpoint",),
    "tasks": ("TASKS", "find_task"),
    "training.train": ("train",),
    "vocabulary": ("PUBLISHED_FILES", "TOKENIZER_KEY", "Tokenizer", "load_tokenizer"),
}

__all__ = [
    "COMPUTED", "CONFIGS", "MEDIA", "METRICS", "PUBLISHED_FILES", "TASKS", "TOKENIZER_KEY", "Attention", "Encoder",
    "Ensemble", "GenerationOptions", "Inputs", "Prediction", "Tokenizer", "UnivalConfig", "UnivalError", "UnivalModel",
    "align_checkpoint", "config_of", "evaluate", "find_task", "generate", "load_model", "load_tokenizer", "predict",
    "save_model", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOME.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'unival_core' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"unival_core.{home}"), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
