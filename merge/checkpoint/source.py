"""What every public function takes for a checkpoint, and how it becomes names and tensors."""

# What users give is checked, whatever its type is said to be.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

from merge.checkpoint.names import idle_rules, new_names
from merge.checkpoint.open import Checkpoint, open_checkpoint, specs
from merge.errors import MergeError, shortened

if TYPE_CHECKING:
    from torch import Tensor, nn

StateDict: TypeAlias = "Mapping[str, Tensor]"
# An open Checkpoint is a state dict whose tensors are read when asked for.
Source: TypeAlias = "str | Path | StateDict | nn.Module"


def opened(source: Source, section: str = "auto", name: str = "") -> StateDict:
    """Give the tensors of a checkpoint by name: a path is opened lazily, a module gives its own tensors, not copies.

    `section` is the part of a training file that a path means; `name` is what messages call the argument. Raises
    MergeError for a path that cannot be opened and for anything that is no checkpoint.
    """
    if isinstance(source, (str, Path)):
        return open_checkpoint(source, section)
    if isinstance(source, Checkpoint):
        return source
    from torch import nn

    called = f"{name}: " if name else ""
    if isinstance(source, nn.Module):
        state: dict[str, object] = source.state_dict()
        return {key: dense(value, called + key) for key, value in state.items() if not key.endswith("_extra_state")}
    if not isinstance(source, Mapping):
        raise MergeError(
            f"{called}{type(source).__name__} is no checkpoint: give a path, an open Checkpoint, a state dict or a "
            "module" + ("; a task vector is applied to its base first" if hasattr(source, "tensors") else "")
        )
    if isinstance(source, dict):  # other mappings may read from a disk: their values are looked at when they are used
        for key, value in cast("dict[object, object]", source).items():
            if not isinstance(key, str):
                raise MergeError(f"{called}the key {shortened(key)} of this dict is no name of a tensor")
            dense(value, called + key)
    return source


def dense(value: object, name: str) -> Tensor:
    """Give a tensor without its history. Raises MergeError for what is none, has no values or is not dense."""
    import torch

    if not isinstance(value, torch.Tensor):
        raise MergeError(f"{name} is a {type(value).__name__}, not a tensor: give the part that holds tensors by name")
    if value.device.type == "meta":
        raise MergeError(f"{name} is on the device meta, without values: load the checkpoint onto a real device first")
    if value.layout != torch.strided or value.is_quantized or value.is_nested:
        way = "dequantize()" if value.is_quantized else "to_padded_tensor(0.0)" if value.is_nested else "to_dense()"
        raise MergeError(f"{name} is not dense, as tensors have to be here: give what its {way} gives")
    return value.detach()


def whole(tensors: StateDict, name: str) -> Tensor:
    """Give a tensor to use all of: of an open file in memory of its own, so that the file may change meanwhile."""
    return tensors.read(name) if isinstance(tensors, Checkpoint) else tensors[name]


def renamed(source: Source, rules: str | Sequence[str], section: str = "auto") -> StateDict:
    """Give a checkpoint's tensors under other names; an open Checkpoint stays one, nothing is read or copied.

    Rules are "FROM=TO": a prefix ("module.=" strips it, "=module." adds it), or a whole name with stars, each of which
    stands for the same text on both sides ("*._orig_mod.*=*.*").

        >>> import torch
        >>> sorted(renamed({"module.w": torch.zeros(1), "module.b": torch.zeros(1)}, "module.="))
        ['b', 'w']

    Raises MergeError for what is no rule, a rule that fits no name, and two names that become one.
    """
    rules = [rules] if isinstance(rules, str) else list(rules)
    tensors = opened(source, section)
    if idle := idle_rules(list(tensors), rules):
        raise MergeError(f"rename={idle[0]!r} fits no tensor; names look like {', '.join(list(tensors)[:3])}")
    if isinstance(tensors, Checkpoint):
        return tensors.renamed(rules)
    return {new: tensors[name] for name, new in new_names(tensors, rules, "the state dict").items()}


def load_checkpoint(source: Source, section: str = "auto") -> dict[str, Tensor]:
    """Give a checkpoint's tensors as a plain dict in memory that shares nothing with the source. Ties stay ties.

    Raises MergeError as `open_checkpoint` does, and for anything that is no checkpoint.
    """
    tensors = opened(source, section)
    ties = {name: spec.tie or name for name, spec in specs(tensors).items()}
    shared: dict[Hashable, Tensor] = {}
    for name, tie in ties.items():
        if tie not in shared:
            stored = isinstance(tensors, Checkpoint)
            shared[tie] = tensors.read(name) if stored else tensors[name].detach().clone()
    return {name: shared[tie] for name, tie in ties.items()}


def opened_all(
    sources: Mapping[str, Source] | Sequence[Source],
    section: str = "auto",
    opening: Callable[[Source, str, str], StateDict] = opened,
) -> dict[str, StateDict]:
    """Give several checkpoints by name; those of a sequence are called "0", "1", and so on.

    `opening` opens each, of which it is told the section and the name.
    Raises MergeError where the argument is one checkpoint instead of several, and for what `opened` refuses.
    """
    from torch import nn

    if isinstance(sources, (str, Path, Checkpoint, nn.Module)) or not isinstance(sources, (Mapping, Sequence)):
        raise MergeError(f"several checkpoints are needed, by name or in a list, not one {type(sources).__name__}")
    items = sources.items() if isinstance(sources, Mapping) else ((str(i), source) for i, source in enumerate(sources))
    return {str(name): opening(source, section, str(name)) for name, source in items}
