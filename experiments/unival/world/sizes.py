"""How large worlds are, and which tasks see which pictures."""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["DOMAIN_SETS", "SIZES", "Size"]


@dataclass(frozen=True)
class Size:
    """Scenes by medium and pool, rows by task and split. Sounds need no scenes."""

    scenes: Mapping[str, Mapping[str, int]]
    rows: Mapping[str, Mapping[str, int]]


# The domain of a task's train, val and test pictures where they are not clean. The shifted splits are always the same.
DOMAIN_SETS: dict[str, dict[str, str]] = {
    "shared": {},
    "split": {"grounding": "lowquality", "entailment": "printed"},
}

_SHIFTS = {"novel": 600, "lowquality": 600, "printed": 600}
_MAIN = {"pretrain": 12000, "train": 6000, "val": 1200, "test": 2000} | _SHIFTS
_SIDE = {"pretrain": 3000, "train": 2000, "val": 600, "test": 600}
_FILM = {"pretrain": 1200, "train": 1500, "val": 600, "test": 1200, "novel": 600, "lowquality": 600}
_FULL = Size(
    {
        "image": {"pretrain": 12000, "train": 5000, "val": 1500, "test": 2400}
        | dict.fromkeys(("novel", "lowquality", "printed", "knowledge"), 900),
        "video": {"pretrain": 1200, "train": 1200, "val": 600, "test": 1200, "novel": 600, "lowquality": 600},
        "audio": {},
    },
    {
        "caption": _MAIN | {"pretrain-late": 3000, "train": 4000},
        "vqa": _MAIN | {"knowledge": 600},
        "grounding": _MAIN,
        "entailment": _MAIN,
        "grounded-caption": _SIDE,
        "image-text-matching": _SIDE,
        "video-caption": _FILM,
        "video-qa": _FILM,
        "video-text-matching": {"pretrain": 600, "train": 400, "val": 300, "test": 300},
        "audio-caption": {"train": 600, "val": 300, "test": 1200, "snr": 600},
        "backbone": {"pretrain": 10000, "val": 600},
    },
)


def _cut(size: Size, rows: int, scenes: int) -> Size:
    """The same files with at most so many rows each, from pools of at most so many scenes."""
    return Size(
        {medium: {name: min(n, scenes) for name, n in pools.items()} for medium, pools in size.scenes.items()},
        {task: {split: min(n, rows) for split, n in splits.items()} for task, splits in size.rows.items()},
    )


def finetuning(size: Size) -> Size:
    """Without what only pretraining reads. The files that stay keep every byte."""
    kept = {task: {s: n for s, n in splits.items() if "pretrain" not in s} for task, splits in size.rows.items()}
    return Size(size.scenes, {task: splits for task, splits in kept.items() if task != "backbone"})


SIZES = {"full": _FULL, "quick": finetuning(_FULL), "micro": _cut(_FULL, rows=12, scenes=60)}
