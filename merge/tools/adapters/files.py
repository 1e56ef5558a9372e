"""Merged adapters from folders to a folder or, over a base, to a checkpoint, one tensor in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from merge._version import VERSION
from merge.checkpoint.atomic import check_target
from merge.checkpoint.digest import digest
from merge.checkpoint.formats.tensors import Spec
from merge.checkpoint.open import Checkpoint, open_checkpoint
from merge.checkpoint.save import lay_out
from merge.engine.made import Made, write_made
from merge.errors import MergeError
from merge.plan.policy import Policy
from merge.plan.sidecars import sidecars
from merge.recipe.label import share_label
from merge.tools.adapters.configuration import CONFIG
from merge.tools.adapters.factors import notes_on, shares_of
from merge.tools.adapters.folder import WEIGHTS, Adapter, open_adapter, save_adapter
from merge.tools.adapters.merged import MergedAdapter, merge_adapters
from merge.tools.adapters.modes import EXACT
from merge.tools.adapters.over_base import changes_by, over_base


@dataclass(frozen=True)
class AdapterOptions:
    """How adapters are merged: see `merge_adapters`. With `base` the output is a checkpoint, laid out as the base."""

    weights: Sequence[float] | None = None
    mode: str = "exact"
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    rank: int | None = None
    base: Path | None = None
    section: str = "auto"
    names: Sequence[str] | None = None
    allow_nonfinite: bool = False
    dequantize: bool = False
    accept: Sequence[str] = ()
    overwrite: bool = False


@dataclass(frozen=True)
class AdapterReport:
    """What was written: a line of text and the same as data, with notes for the user."""

    text: str
    data: Mapping[str, object]
    notes: tuple[str, ...]


def adapters_to_file(folders: Sequence[Path], output: Path, options: AdapterOptions | None = None) -> AdapterReport:
    """Merge the adapters of these folders (called as the folders, or `names`) into `output`, whole or not at all.

    Raises MergeError.
    """
    options = options or AdapterOptions()
    names = options.names or [folder.resolve().name for folder in folders]
    if len(names) != len(folders):
        raise MergeError(f"{len(names)} names (name=...) were given for {len(folders)} adapters")
    adapters = [open_adapter(folder, name) for folder, name in zip(folders, names, strict=True)]
    if any(output.resolve() in (folder.resolve(), *folder.resolve().parents) for folder in folders):
        raise MergeError(f"{output}: is or holds an input; choose another output")
    shares = _shares(adapters, options)
    data = {"output": str(output), "shares": shares, "mode": options.mode, **_parameters(options)}
    if options.base is not None:
        if options.mode == "factors" or options.rank is not None:
            raise MergeError("over a base the change is whole and of any rank: leave mode='factors' and rank=... out")
        notes = _over_base(open_checkpoint(options.base, options.section), adapters, output, options)
        told = f"{output}: {options.base.name} + {_label(shares, options)}"
        return AdapterReport(told, {**data, "base": str(options.base)}, (*notes_on(adapters), *notes))
    check_target(output, 0, folder=True, overwrite=options.overwrite)
    if options.allow_nonfinite:
        raise MergeError("allow_nonfinite=... is for sums over a base: merged factors have to be finite")
    if options.dequantize or options.accept:
        raise MergeError(f"{'dequantize' if options.dequantize else 'accept'}=... is for sums over a base, base=...")
    merged = merge_adapters(
        adapters, weights=options.weights, mode=options.mode, rank=options.rank, **options.parameters
    )
    chosen = {"mode": options.mode, "rank": options.rank, **_parameters(options)}
    metadata = {"unival_merge": json.dumps({**_identity(adapters, shares), **chosen})}
    made = Made("adapters", _label(shares, options), {a.name: a.checkpoint for a in adapters}, shares=shares)

    def card(digest: str) -> str:
        recorded = made.record({"digest": digest, "notes": list(merged.notes)})
        return made.card(output.name, (WEIGHTS, CONFIG), recorded)

    config = _config(adapters)
    save_adapter(
        merged.modules, merged.saved, config, output, metadata=metadata, card=card, overwrite=options.overwrite
    )
    data |= {"rank": merged.rank, "distance": merged.distance, "discarded": merged.discarded}
    return AdapterReport(_told(output, merged, shares, options), data, merged.notes)


def _told(output: Path, merged: MergedAdapter, shares: Mapping[str, float], options: AdapterOptions) -> str:
    text = f"{output}: {_label(shares, options)}, rank {merged.rank}, {len(merged.modules)} modules"
    if options.mode == "factors":
        text += f"; averaged factors are not the exact sum: relative Frobenius distance {merged.distance:.3g}"
    elif options.rank is not None or options.mode != "exact":
        text += f"; left out {merged.discarded:.3%} of the energy (relative Frobenius distance {merged.distance:.3g})"
    return text


def _shares(adapters: Sequence[Adapter], options: AdapterOptions) -> dict[str, float]:
    """The coefficient of every adapter; methods multiply by 1 where no weights are given."""
    weights = options.weights or ([1.0] * len(adapters) if options.mode not in EXACT else None)
    return dict(zip([adapter.name for adapter in adapters], shares_of(adapters, weights), strict=True))


def _parameters(options: AdapterOptions) -> dict[str, object]:
    """What a method was given, for records; exact sums have nothing of the kind."""
    return {} if options.mode in EXACT else {"parameters": dict(options.parameters)}


def _label(shares: Mapping[str, float], options: AdapterOptions) -> str:
    return share_label(shares) if options.mode in EXACT else f"{options.mode} of {share_label(shares)}"


def _identity(adapters: Sequence[Adapter], shares: Mapping[str, float]) -> dict[str, object]:
    inputs = [{"name": a.name, "share": shares[a.name], "digest": digest(a.checkpoint)} for a in adapters]
    return {"method": "adapters", "inputs": inputs, "version": VERSION}


def _config(adapters: Sequence[Adapter]) -> dict[str, object]:
    """The first adapter's configuration with the modules that any of them saved."""
    whole = sorted({str(name) for adapter in adapters for name in adapter.config.get("modules_to_save") or ()})
    return {**adapters[0].config, "modules_to_save": whole or None}


def _over_base(base: Checkpoint, adapters: Sequence[Adapter], output: Path, options: AdapterOptions) -> tuple[str, ...]:
    """Write the base with the adapters' changes; gives notes for the user."""
    policy = Policy(
        dequantize=options.dequantize, accept=tuple(options.accept), allow_nonfinite=options.allow_nonfinite
    )
    changes = changes_by(adapters, options.weights, options.mode, options.parameters)
    applied = over_base(base, adapters, options.weights, policy, changes)
    shares = _shares(adapters, options)
    metadata = dict(base.metadata)
    if set(metadata) <= {"format"}:  # some models rebuild themselves from their metadata: it is not added to
        metadata = {"format": "pt", **metadata, "unival_merge": json.dumps(_identity(adapters, shares))}
    described = {name: Spec(unit.element, unit.shape, unit.name) for name, unit in applied.by_name().items()}
    beside = sidecars(base, [base], ["base"], applied.units, policy)
    layout = lay_out(output, described, like=base, metadata=metadata, sidecars=beside.files)
    notes = (*(beside.notes if layout.folder else ()), *layout.notes)
    chosen: dict[str, object] = {"accept": list(options.accept), "dequantize": options.dequantize}
    chosen |= {} if options.mode in EXACT else {"mode": options.mode, **_parameters(options)}
    made = Made(
        "adapters",
        f"{base.path.name} + {_label(shares, options)}",
        {adapter.name: adapter.checkpoint for adapter in adapters},
        base,
        shares,
        {**chosen, "allow_nonfinite": options.allow_nonfinite},
    )
    tensors = ((unit.names, applied.tensor(unit)) for unit in applied.units)
    write_made(output, replace(layout, notes=notes), tensors, made, overwrite=options.overwrite)
    return notes
