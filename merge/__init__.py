"""Merge checkpoints finetuned from one ancestor: exactly, safely, at the speed of the disk.

    import merge

    merged = merge.interpolate(merge.open_checkpoint("vqa.pt"), merge.open_checkpoint("caption.pt"), ratio=0.4)
    for ratio, state_dict in merge.sweep(a, b, ratios=[i / 10 for i in range(11)]):
        ...

Names are loaded on first use, so that importing the package (and `unival-merge --help`) does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from merge._version import VERSION as __version__
from merge.errors import MergeError

if TYPE_CHECKING:
    from merge.checkpoint.digest import digest
    from merge.checkpoint.open import Checkpoint, load_checkpoint, open_checkpoint
    from merge.checkpoint.save import save_checkpoint
    from merge.engine.files import Options, run, sweep_to_files
    from merge.engine.live import LinearPath, Simplex
    from merge.engine.memory import add_task_vectors, average, interpolate, ratios, slerp, sweep, task_vector
    from merge.methods import METHODS
    from merge.plan.policy import Policy
    from merge.recipe.recipe import Input, Recipe, read_recipe, share_label
    from merge.tools.adapters.factors import apply_adapters, merge_adapters
    from merge.tools.adapters.folder import Adapter, open_adapter
    from merge.tools.align import (
        PermutationSpec,
        activation_matching,
        apply_permutation,
        permutation_spec,
        random_permutation,
        weight_matching,
    )
    from merge.tools.batchnorm import activation_statistics, recalibrate_batchnorm, repair
    from merge.tools.convert import convert

_HOME = {
    "PermutationSpec": "tools.align",
    "activation_matching": "tools.align",
    "apply_permutation": "tools.align",
    "permutation_spec": "tools.align",
    "random_permutation": "tools.align",
    "weight_matching": "tools.align",
    "Adapter": "tools.adapters.folder",
    "open_adapter": "tools.adapters.folder",
    "apply_adapters": "tools.adapters.factors",
    "merge_adapters": "tools.adapters.factors",
    "convert": "tools.convert",
    "activation_statistics": "tools.batchnorm",
    "Checkpoint": "checkpoint.open",
    "load_checkpoint": "checkpoint.open",
    "open_checkpoint": "checkpoint.open",
    "digest": "checkpoint.digest",
    "Options": "engine.files",
    "run": "engine.files",
    "sweep_to_files": "engine.files",
    "add_task_vectors": "engine.memory",
    "average": "engine.memory",
    "interpolate": "engine.memory",
    "slerp": "engine.memory",
    "task_vector": "engine.memory",
    "METHODS": "methods",
    "LinearPath": "engine.live",
    "Simplex": "engine.live",
    "Input": "recipe.recipe",
    "Recipe": "recipe.recipe",
    "read_recipe": "recipe.recipe",
    "recalibrate_batchnorm": "tools.batchnorm",
    "repair": "tools.batchnorm",
    "share_label": "recipe.recipe",
    "Policy": "plan.policy",
    "ratios": "engine.memory",
    "sweep": "engine.memory",
    "save_checkpoint": "checkpoint.save",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'merge' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"merge.{_HOME[name]}"), name)
    globals()[name] = value
    return value


__all__ = [
    "METHODS",
    "Adapter",
    "Checkpoint",
    "Input",
    "LinearPath",
    "MergeError",
    "Options",
    "PermutationSpec",
    "Policy",
    "Recipe",
    "Simplex",
    "__version__",
    "activation_matching",
    "activation_statistics",
    "add_task_vectors",
    "apply_adapters",
    "apply_permutation",
    "average",
    "convert",
    "digest",
    "interpolate",
    "load_checkpoint",
    "merge_adapters",
    "open_adapter",
    "open_checkpoint",
    "permutation_spec",
    "random_permutation",
    "ratios",
    "read_recipe",
    "recalibrate_batchnorm",
    "repair",
    "run",
    "save_checkpoint",
    "share_label",
    "slerp",
    "sweep",
    "sweep_to_files",
    "task_vector",
    "weight_matching",
]
