"""What became of entries beside the weights of files, in plain words; of tensors `merge.engine.summary` tells."""

from __future__ import annotations

from collections.abc import Sequence

from merge.checkpoint.open import Checkpoint

_LISTED = 5  # names in a note


def left_out(checkpoints: Sequence[Checkpoint], labels: Sequence[str], *, entries_kept: bool) -> tuple[str, ...]:
    """Say which entries of files are left out; with `entries_kept` the output has those of the first input's file."""
    notes: list[str] = []
    for label, item in list(zip(labels, checkpoints, strict=True))[int(entries_kept) :]:
        beside = [name for name in (*item.sections, *item.content.others) if name != item.section]
        beside = [name for name in beside if not item.section.startswith(f"{name}.")]
        if beside:
            more = f" and {len(beside) - _LISTED} more" if len(beside) > _LISTED else ""
            notes.append(f"left out of {label}, beside the weights: {', '.join(beside[:_LISTED])}{more}")
    return tuple(notes)
