"""Merge checkpoints finetuned from one ancestor: exactly, safely, at the speed of the disk.

    import merge

    merged = merge.interpolate("vqa.pt", "caption.pt", 0.4)
    for ratio, state_dict in merge.sweep("vqa.pt", "caption.pt", merge.ratios(11)):
        ...

A checkpoint is a path, an open `Checkpoint`, a state dict or a module, in every function. Names are loaded on first
use, so that importing the package (and `unival-merge --help`) does not import torch.
"""

# Users and type checkers see the names in `__all__`, which is made of the table.
# pyright: reportUnsupportedDunderAll=false, reportUnusedImport=false
# ruff: noqa: F401

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from merge._version import VERSION as __version__
from merge.errors import MergeError, MergeWarning

# Where the public names live; a test compares the imports for type checkers below with it.
_HOME = {
    "METHODS": "methods",
    "Method": "methods",
    "Adapter": "tools.adapters.folder",
    "Alignment": "tools.align",
    "Checkpoint": "checkpoint.open",
    "ExtractOptions": "tools.adapters.extract",
    "Input": "recipe.recipe",
    "LinearPath": "engine.live",
    "LivePath": "engine.live",
    "Options": "engine.planned",
    "PermutationSpec": "tools.align",
    "Policy": "plan.policy",
    "Recipe": "recipe.recipe",
    "RunningAverage": "tools.series.running",
    "Simplex": "engine.live",
    "TaskVector": "tools.task_vector",
    "activation_matching": "tools.align",
    "activation_statistics": "tools.batchnorm",
    "adamerge": "tools.adamerge",
    "align_checkpoint": "tools.align",
    "alone": "checkpoint.atomic",
    "apply_adapters": "tools.adapters.over_base",
    "apply_permutation": "tools.align",
    "average": "engine.memory",
    "convert": "tools.convert",
    "diff": "tools.diagnose.difference",
    "digest": "checkpoint.digest",
    "doctor": "tools.diagnose.report",
    "extract_lora": "tools.adapters.extract",
    "inspect": "tools.diagnose.inspection",
    "interpolate": "engine.memory",
    "load_checkpoint": "checkpoint.source",
    "merge_adapters": "tools.adapters.merged",
    "merge_with": "engine.memory",
    "open_adapter": "tools.adapters.folder",
    "open_checkpoint": "checkpoint.open",
    "patterns": "tools.align",
    "permutation_spec": "tools.align",
    "random_permutation": "tools.align",
    "ratios": "recipe.shares",
    "read_groups": "tools.align",
    "read_recipe": "recipe.json",
    "recalibrate_batchnorm": "tools.batchnorm",
    "renamed": "checkpoint.source",
    "repair": "tools.batchnorm",
    "run": "engine.stream",
    "save_checkpoint": "checkpoint.save",
    "series": "tools.series.kinds",
    "share_label": "recipe.label",
    "slerp": "engine.memory",
    "statistics": "tools.statistics",
    "suffix_like": "checkpoint.save",
    "sweep": "engine.memory",
    "sweep_to_files": "engine.stream",
    "task_arithmetic": "engine.memory",
    "weight_matching": "tools.align",
}

__all__ = ["MergeError", "MergeWarning", "__version__", *_HOME]

if TYPE_CHECKING:
    from merge.checkpoint.atomic import alone
    from merge.checkpoint.digest import digest
    from merge.checkpoint.open import Checkpoint, open_checkpoint
    from merge.checkpoint.save import save_checkpoint, suffix_like
    from merge.checkpoint.source import load_checkpoint, renamed
    from merge.engine.live import LinearPath, LivePath, Simplex
    from merge.engine.memory import average, interpolate, merge_with, slerp, sweep, task_arithmetic
    from merge.engine.planned import Options
    from merge.engine.stream import run, sweep_to_files
    from merge.methods import METHODS, Method
    from merge.plan.policy import Policy
    from merge.recipe.json import read_recipe
    from merge.recipe.label import share_label
    from merge.recipe.recipe import Input, Recipe
    from merge.recipe.shares import ratios
    from merge.tools.adamerge import adamerge
    from merge.tools.adapters.extract import ExtractOptions, extract_lora
    from merge.tools.adapters.folder import Adapter, open_adapter
    from merge.tools.adapters.merged import merge_adapters
    from merge.tools.adapters.over_base import apply_adapters
    from merge.tools.align import (
        Alignment,
        PermutationSpec,
        activation_matching,
        align_checkpoint,
        apply_permutation,
        patterns,
        permutation_spec,
        random_permutation,
        read_groups,
        weight_matching,
    )
    from merge.tools.batchnorm import activation_statistics, recalibrate_batchnorm, repair
    from merge.tools.convert import convert
    from merge.tools.diagnose.difference import diff
    from merge.tools.diagnose.inspection import inspect
    from merge.tools.diagnose.report import doctor
    from merge.tools.series.kinds import series
    from merge.tools.series.running import RunningAverage
    from merge.tools.statistics import statistics
    from merge.tools.task_vector import TaskVector


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        from merge.errors import meant

        longer = sorted((known for known in _HOME if known.startswith(name)), key=len)
        hint = "" if name.startswith("_") else meant(name, longer[:1], 0.0) or meant(name, _HOME, 0.6)
        raise AttributeError(f"module 'merge' has no attribute {name!r}{hint}")
    value = getattr(importlib.import_module(f"merge.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
