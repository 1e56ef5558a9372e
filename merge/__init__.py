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
    from merge.adapters.folder import Adapter, open_adapter
    from merge.adapters.merging import apply_adapters, merge_adapters
    from merge.align import (
        PermutationSpec,
        activation_matching,
        apply_permutation,
        permutation_spec,
        random_permutation,
        weight_matching,
    )
    from merge.batchnorm import activation_statistics, recalibrate_batchnorm, repair
    from merge.checkpoint import Checkpoint, load_checkpoint, open_checkpoint
    from merge.conversion.convert import convert
    from merge.digests import digest
    from merge.engine import Options, run, sweep_to_files
    from merge.memory import add_task_vectors, average, interpolate, ratios, slerp, sweep, task_vector
    from merge.methods import METHODS
    from merge.path import LinearPath, Simplex
    from merge.policy import Policy
    from merge.recipe import Input, Recipe, read_recipe, share_label
    from merge.writing import save_checkpoint

_HOME = {
    "PermutationSpec": "align",
    "activation_matching": "align",
    "apply_permutation": "align",
    "permutation_spec": "align",
    "random_permutation": "align",
    "weight_matching": "align",
    "Adapter": "adapters.folder",
    "open_adapter": "adapters.folder",
    "apply_adapters": "adapters.merging",
    "merge_adapters": "adapters.merging",
    "convert": "conversion.convert",
    "activation_statistics": "batchnorm",
    "Checkpoint": "checkpoint",
    "load_checkpoint": "checkpoint",
    "open_checkpoint": "checkpoint",
    "digest": "digests",
    "Options": "engine",
    "run": "engine",
    "sweep_to_files": "engine",
    "add_task_vectors": "memory",
    "average": "memory",
    "interpolate": "memory",
    "slerp": "memory",
    "task_vector": "memory",
    "METHODS": "methods",
    "LinearPath": "path",
    "Simplex": "path",
    "Input": "recipe",
    "Recipe": "recipe",
    "read_recipe": "recipe",
    "recalibrate_batchnorm": "batchnorm",
    "repair": "batchnorm",
    "share_label": "recipe",
    "Policy": "policy",
    "ratios": "memory",
    "sweep": "memory",
    "save_checkpoint": "writing",
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
