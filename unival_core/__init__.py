"""UnIVAL: one encoder-decoder for image, video, audio and text (arXiv 2307.16184).

    import unival_core

    model = unival_core.load("vqa.safetensors")
    model.answer("vqa", image="a.png", text="which digit is red?")
    unival_core.evaluate(model, dataset).scores["VQA accuracy"].value

Names are loaded on first use, so that importing the package does not import torch. Data sets, metrics and training
have doors of their own: `unival_core.data`, `unival_core.metrics`, `unival_core.training`.
"""

# pyright: reportUnsupportedDunderAll=false, reportUnusedImport=false
# ruff: noqa: F401

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from unival_core.errors import NotFinite, UnivalError

# Where the public names live; a test compares it with the imports for type checkers below.
_HOME = {
    "AnsweringModel": "answering",
    "Attention": "attention",
    "COMPUTED": "computed",
    "CONFIGS": "config",
    "Encoder": "model",
    "Ensemble": "ensemble",
    "GenerationOptions": "decoding",
    "ImageCodes": "image_codes",
    "ImageCodesConfig": "image_codes",
    "Inputs": "inputs",
    "MEDIA": "inputs",
    "METRICS": "metrics",
    "PUBLISHED_FILES": "vocabulary",
    "Prediction": "evaluation",
    "TASKS": "tasks",
    "TOKENIZER_KEY": "vocabulary",
    "Tokenizer": "vocabulary",
    "UnivalConfig": "config",
    "UnivalModel": "model",
    "align_checkpoint": "permutations",
    "config_of": "checkpoint",
    "evaluate": "evaluation",
    "find_task": "tasks",
    "generate": "generation",
    "load": "answering",
    "load_image_codes": "image_codes",
    "load_model": "checkpoint",
    "load_tokenizer": "vocabulary",
    "predict": "evaluation",
    "save_image_codes": "image_codes",
    "save_model": "checkpoint",
    "to_pixels": "image_codes",
    "train": "training.train",
}

__all__ = ["NotFinite", "UnivalError", *_HOME]

if TYPE_CHECKING:
    from unival_core.answering import AnsweringModel, load
    from unival_core.attention import Attention
    from unival_core.checkpoint import config_of, load_model, save_model
    from unival_core.computed import COMPUTED
    from unival_core.config import CONFIGS, UnivalConfig
    from unival_core.decoding import GenerationOptions
    from unival_core.ensemble import Ensemble
    from unival_core.evaluation import Prediction, evaluate, predict
    from unival_core.generation import generate
    from unival_core.image_codes import ImageCodes, ImageCodesConfig, load_image_codes, save_image_codes, to_pixels
    from unival_core.inputs import MEDIA, Inputs
    from unival_core.metrics import METRICS
    from unival_core.model import Encoder, UnivalModel
    from unival_core.permutations import align_checkpoint
    from unival_core.tasks import TASKS, find_task
    from unival_core.training.train import train
    from unival_core.vocabulary import PUBLISHED_FILES, TOKENIZER_KEY, Tokenizer, load_tokenizer


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'unival_core' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"unival_core.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
