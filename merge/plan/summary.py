"""What became of all that was not simply merged, in plain words: tensors, and entries beside the weights of a file."""

from __future__ import annotations

from collections.abc import Sequence

from merge.checkpoint.open import Checkpoint
from merge.plan.units import Unit

_LISTED = 5  # names in a note


def told(
    checkpoints: Sequence[Checkpoint], labels: Sequence[str], units: Sequence[Unit], *, entries_kept: bool
) -> tuple[str, ...]:
    """Say which tensors came unmerged from one input, which were left out, and which entries of files were.

    With `entries_kept` the output has those of the first input's file.
    """
    notes: list[str] = []
    alone: dict[tuple[str, str], list[str]] = {}
    for unit in units if len(checkpoints) > 1 else ():
        if unit.kind == "copy" and unit.why and len(unit.sources) == 1:
            why = unit.why.partition(" from ")[0] if unit.why.startswith("picked") else unit.why
            alone.setdefault((labels[unit.sources[0]], why), []).extend(unit.names)
        elif unit.kind == "merge" and unit.why.startswith("missing") and unit.assembly is None:
            among = " and ".join(labels[index] for index in dict.fromkeys(unit.sources))
            alone.setdefault((among, ""), []).extend(unit.names)
    for (whose, why), names in alone.items():
        how = f"came unmerged from {whose} ({why})" if why else f"were merged among {whose} alone"
        notes.append(f"{_counted(names)} {how}")
    made = {name for unit in units for name in unit.names}
    for label, item in zip(labels, checkpoints, strict=True):
        lost = [name for name in item.entries if name not in made]
        if lost:
            notes.append(f"{_counted(lost)} of {label} left out")
    for label, item in list(zip(labels, checkpoints, strict=True))[1 if entries_kept else 0 :]:
        beside = [name for name in (*item.sections, *item.content.others) if name != item.section]
        beside = [name for name in beside if not item.section.startswith(f"{name}.")]
        if beside:
            shown = ", ".join(beside[:_LISTED]) + (
                f" and {len(beside) - _LISTED} more" if len(beside) > _LISTED else ""
            )
            notes.append(f"left out of {label}, beside the weights: {shown}")
    return tuple(notes)


def _counted(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
    return f"{len(names)} tensor{'s' * (len(names) != 1)} ({shown})"
