"""A LoRA adapter out of a finetuned model and its base: what was changed, matrix by matrix, at a small rank."""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merge._version import VERSION
from merge.checkpoint.atomic import check_target
from merge.checkpoint.digest import digest
from merge.checkpoint.hub import hub_id
from merge.checkpoint.open import Checkpoint, open_checkpoint, specs
from merge.checkpoint.source import Source, StateDict, opened, whole
from merge.engine.made import Made
from merge.errors import MergeError
from merge.methods.matrices import noise
from merge.plan.findings.sidecars import sidecars_of
from merge.plan.policy import Policy, dtype_named, matches
from merge.plan.units import plan
from merge.tools.adapters.changes import Changes, approximated, rows_changed, sorted_out, subtree
from merge.tools.adapters.configuration import CONFIG
from merge.tools.adapters.folder import WEIGHTS, Factors, save_adapter
from merge.tools.adapters.rows import TOKENS, Rows


@dataclass(frozen=True)
class ExtractOptions:
    """How an adapter is extracted.

    Attributes:
        rank: the largest rank of a module, "auto" for what `energy` asks.
        energy: share of a change's squared Frobenius norm to keep; by default 0.99, with a rank all that it can hold.
        only: globs of tensors whose changes are taken; none: all.
        drop: globs of tensors whose changes are left out.
        whole: globs of tensors that are saved whole, not as factors.
        dtype: of the factors.
        accept: findings to let pass.
        progress: called with the number of bytes of the tuned model that are done since the last call.
    """

    rank: int | str = "auto"
    energy: float | None = None
    only: Sequence[str] = ()
    drop: Sequence[str] = ()
    whole: Sequence[str] = ()
    dtype: str = "float32"
    accept: Sequence[str] = ()
    progress: Callable[[int], object] | None = None

    def limits(self) -> tuple[int | None, float]:
        """The largest rank, None for any, and the energy to keep. Raises MergeError for what is neither."""
        rank = None if self.rank == "auto" else self.rank
        if rank is not None and (type(rank) is not int or rank < 1):
            raise MergeError(f"rank={self.rank!r}: must be a whole number, 1 or more, or 'auto'")
        energy = self.energy if self.energy is not None else 0.99 if rank is None else 1.0
        if isinstance(energy, bool) or not 0 < energy <= 1:
            raise MergeError(f"energy={energy!r}: must be a share of the change to keep, above 0 and at most 1")
        return rank, float(energy)


@dataclass(frozen=True)
class ExtractedAdapter:
    """The result of `extract_lora`.

    Attributes:
        modules: the factors by module, named as in the base, of scale 1.
        left_out: the share of each module's change, of its squared Frobenius norm, that the rank leaves out.
        whole: modules that are saved whole.
        saved: their tensors.
        rows: rows of embeddings that changed, by module.
        transposed: whether the modules' weights lie as [inputs, outputs].
        skipped: tensors whose changes were left out, or are within float32's rounding.
        others: the base's other modules.
    """

    modules: Mapping[str, Factors]
    left_out: Mapping[str, float]
    whole: Sequence[str] = ()
    saved: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    rows: Mapping[str, Rows] = field(default_factory=dict[str, Rows])
    transposed: bool = False
    skipped: Sequence[str] = ()
    others: Sequence[str] = ()

    @property
    def rank(self) -> int:
        """The largest rank."""
        return max(factors.rank for factors in self.modules.values())


def extract_lora(tuned: Source, base: Source, options: ExtractOptions | None = None) -> ExtractedAdapter:
    """Write what finetuning changed as low-rank factors: the truncated SVD of `tuned - base`, matrix by matrix.

    What has not changed is left out. Norms, embeddings, convolutions and all else that factors cannot hold are given
    whole where they changed, of a table that may be tied to the head its changed rows.

    Raises MergeError where nothing changed, and for changes that no adapter over this base can hold.
    """
    options = options or ExtractOptions()
    rank, energy = options.limits()
    dtype = dtype_named(options.dtype).dtype
    before, after = opened(base, name="base"), opened(tuned, name="tuned")
    found, skipped = _changes(before, after, options)
    modules: dict[str, Factors] = {}
    left_out: dict[str, float] = {}
    for module, turned in found.factored.items():
        factors, left = _factors(module, (before, after), turned, (rank, energy))
        if options.progress:
            options.progress(whole(after, f"{module}.weight").nbytes)
        bias = _bias(module, before, after) if found.biases else None
        if factors is None and module not in found.biases:
            skipped.append(f"{module}.weight")
            continue
        a, b = factors or _nothing(specs(before)[f"{module}.weight"].shape, turned)
        modules[module] = Factors(a.to(dtype), b.to(dtype), 1.0, bias=None if bias is None else bias.to(dtype))
        left_out[module] = left
    if not modules:
        if not (found.whole or found.rows or skipped):
            raise MergeError("the two models are equal: there is nothing to extract")
        told = f"; changed are {', '.join([*found.whole, *found.rows][:3])}" if found.whole or found.rows else ""
        raise MergeError(f"no linear layer has changed, and an adapter needs one{told}")
    saved = {name: whole(after, name) for module in found.whole for name in subtree(module, before)}
    saved |= {name: whole(before, name) for name in saved.keys() & set(skipped)}
    rows: dict[str, Rows] = {}
    for module in found.rows:
        old, new = whole(before, f"{module}.weight"), whole(after, f"{module}.weight")
        indices = rows_changed(old, new)
        rows[module] = Rows(tuple(indices), new[indices])
    known = {name.rpartition(".")[0] for name in before} - modules.keys()
    return ExtractedAdapter(
        modules, left_out, sorted(found.whole), saved, rows, found.transposed, tuple(skipped), sorted(known)
    )


def _changes(before: StateDict, after: StateDict, options: ExtractOptions) -> tuple[Changes, list[str]]:
    """What changed, of what is asked for; and what changed and is left out."""
    shapes = specs(before), specs(after)
    left = {
        name
        for name in dict.fromkeys((*before, *after))
        if matches(name, options.drop) or (options.only and not matches(name, options.only))
    }
    for name, spec in shapes[0].items():
        if name not in left and name in shapes[1] and shapes[1][name].shape != spec.shape:
            told = f"{list(shapes[1][name].shape)} in the tuned model and {list(spec.shape)} in the base"
            raise MergeError(
                f"{name} has shape {told}: peft loads an adapter over the base's shapes, and none can hold this; give "
                f"the base the same shape first, or leave the change out with drop={name!r}"
            )
    for option, globs in (("only", options.only), ("drop", options.drop), ("whole", options.whole)):
        for glob in globs:
            if not any(matches(name, (glob,)) for name in shapes[0]):
                raise MergeError(f"{option}={glob!r} matches no tensor; names look like {', '.join(list(before)[:3])}")
    kept = [_without(tensors, left) for tensors in (before, after)]
    policy = Policy(dtype="float32", accept=tuple(options.accept))  # dtypes may differ: nothing is rounded to one
    units = plan(kept, ["base", "tuned"], policy, has_base=True)
    skipped = [name for name in left & before.keys() & after.keys() if not torch.equal(before[name], after[name])]
    return sorted_out(units, (before, after), options.whole), sorted(skipped)


def _without(tensors: StateDict, left: Collection[str]) -> StateDict:
    if isinstance(tensors, Checkpoint):
        return replace(tensors, entries={name: entry for name, entry in tensors.entries.items() if name not in left})
    return {name: value for name, value in tensors.items() if name not in left}


def _factors(
    module: str, models: tuple[StateDict, StateDict], turned: bool, limits: tuple[int | None, float]
) -> tuple[tuple[Tensor, Tensor] | None, float]:
    """The factors of one matrix, None where it has changed by rounding alone, and the share of energy left out."""
    before, after = (whole(tensors, f"{module}.weight").double() for tensors in models)
    change = after - before
    if not change.isfinite().all():
        raise MergeError(f"{module}.weight: infinite or NaN values in its change; drop='{module}.*' leaves it out")
    rank, energy = limits
    floor = 0.0
    if energy < 1 or (rank is not None and rank < min(change.shape)):  # at full rank all of it is wanted
        floor = noise(before.float())  # directions that rounding in float32 makes are no change
    a, b, left = approximated(change.T if turned else change, rank, energy, floor)
    return ((a, b) if len(a) else None), left


def _nothing(shape: tuple[int, ...], turned: bool) -> tuple[Tensor, Tensor]:
    """Factors of no change, for a module whose bias alone has changed."""
    outputs, inputs = shape[::-1] if turned else shape
    return torch.zeros(1, inputs), torch.zeros(outputs, 1)


def _bias(module: str, before: StateDict, after: StateDict) -> Tensor:
    """The change of a module's bias, which the factor B adds."""
    return whole(after, f"{module}.bias").double() - whole(before, f"{module}.bias").double()


# -- files -----------------------------------------------------------------------------------------------------------


def extract_to_file(
    tuned: Path, base: Path, output: Path, options: ExtractOptions, *, section: str = "auto", overwrite: bool = False
) -> dict[str, Any]:
    """Extract an adapter into a folder that peft loads; gives what was written, module by module. Raises MergeError."""
    check_target(output, 0, folder=True, overwrite=overwrite)
    after, before = (open_checkpoint(path, section) for path in (tuned, base))
    if any(output.resolve() in (one.path.resolve(), *one.path.resolve().parents) for one in (after, before)):
        raise MergeError(f"{output}: is or holds an input; choose another output")
    made = extract_lora(after, before, options)
    saved = dict(made.saved) | {module + TOKENS: rows.values for module, rows in made.rows.items()}
    named = {"tuned": digest(after), "base": digest(before)}
    metadata = {"unival_merge": json.dumps({"method": "extract-lora", "inputs": named, "version": VERSION})}
    source = Made("extract-lora", extraction_in_words(made), {"tuned": after}, before)

    def card(text: str) -> str:
        recorded = source.record({"digest": text, "notes": []})
        return source.card(output.name, (WEIGHTS, CONFIG), recorded)

    config = _config(made, before)
    writing: dict[str, Any] = {"metadata": metadata, "card": card, "others": made.others, "overwrite": overwrite}
    save_adapter(made.modules, saved, config, output, **writing)
    rows = [
        {"module": module, "rank": factors.rank, "left_out": made.left_out[module]}
        for module, factors in made.modules.items()
    ]
    data: dict[str, Any] = {
        "output": str(output),
        "told": extraction_in_words(made),
        "rank": made.rank,
        "modules": rows,
        "whole": list(made.whole),
    }
    return data | {"rows": {name: len(item.indices) for name, item in made.rows.items()}, "skipped": list(made.skipped)}


def extraction_in_words(made: ExtractedAdapter) -> str:
    """Say what was extracted, in a line."""
    ranks = sorted({factors.rank for factors in made.modules.values()})
    text = f"{len(made.modules)} modules of rank {ranks[0]}" + (f" to {ranks[-1]}" if len(ranks) > 1 else "")
    worst = max(made.left_out, key=made.left_out.__getitem__)
    text += f", left out {made.left_out[worst]:.3%} of the energy at most ({worst})"
    text += f"; {len(made.whole)} modules whole" if made.whole else ""
    rows = sum(len(rows.indices) for rows in made.rows.values())
    return text + (f"; {rows} rows of embeddings" if rows else "")


def _config(made: ExtractedAdapter, base: Checkpoint) -> dict[str, Any]:
    """What `adapter_config.json` says beside ranks and modules."""
    architectures = sidecars_of(base).config.get("architectures")
    name = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    tasks = {"ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM", "ForConditionalGeneration": "SEQ_2_SEQ_LM"}
    return {
        "peft_type": "LORA",
        "task_type": next((task for end, task in tasks.items() if name.endswith(end)), None),
        "base_model_name_or_path": hub_id(base.path) or str(base.path.resolve()),
        "bias": "none",
        "fan_in_fan_out": made.transposed,
        "inference_mode": True,
        "lora_dropout": 0.0,
        "modules_to_save": list(made.whole) or None,
        "trainable_token_indices": {module: list(rows.indices) for module, rows in made.rows.items()} or None,
    }
