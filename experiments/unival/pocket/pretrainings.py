"""The trainings of the study `pretraining`, as data, and which of them stand beside each other.

All start from the backbone, so a training is named by what it is and is done once, whatever comparisons it takes part
in. All sides of a comparison see as many examples in as many updates, but where it is of steps: pretrainings those of
their whole lineage, finetunings their own, from pretrainings that are equally long, or from none.

balancing    balanced batches against batches in proportion to the rows, where two of four tasks have a tenth of theirs
curriculum   images first and videos later against both from the start
tasks        one task against four, at equal examples in all, and at equal steps: with as many of its own examples
             in every update as it has beside three others
modalities   a new modality, audio, behind images, behind images and videos, and behind nothing; and what the videos
             did to the tasks on images
directions   videos behind images, and images behind videos
linear-only  the projections of media alone finetuned, against all that is; and the model that both start from

On one core of a laptop the whole study is to take 20 minutes. Questions are bound to images after about 400 updates
of 64 examples, and shorter pretrainings show nothing on them; so pretrainings are few, and of 400 updates and more but
for the one on videos alone, whose updates take thrice the time. Finetunings are short, 50 to 80 updates, where what
they start from still matters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

BACKBONE = "backbone"


@dataclass(frozen=True)
class Portion:
    """What a training reads of a task: its share of every batch in any unit, and which part of the rows, the first."""

    task: str
    share: float = 1.0
    part: float = 1.0


@dataclass(frozen=True)
class Training:
    """A training from the backbone, or from where another one ended.

    With `finetunes` a finetuning on the training split of its only task, by the task's recipe; else by the recipe of
    pretraining and on that split. `group` are the parameters to train if not those of the recipe, `batch` is the part
    of the recipe's batch that an update has.
    """

    portions: tuple[Portion, ...]
    updates: int
    start: str = BACKBONE
    finetunes: bool = False
    group: str | None = None
    batch: float = 1.0

    @property
    def split(self) -> str:
        """Say where its rows come from."""
        return "train" if self.finetunes else "pretrain"


def tuned(task: str, updates: int, start: str, group: str | None = None) -> Training:
    """Return a finetuning."""
    return Training((Portion(task),), updates, start, finetunes=True, group=group)


FIRST, SECOND = 400, 100  # updates of the stages of the curriculum
FEW = 0.1  # of the rows of two tasks, where data are unbalanced

_IMAGE = tuple(Portion(task) for task in ("caption", "vqa", "grounding", "entailment"))
_VIDEO = tuple(Portion(task, share=2.0) for task in ("video-caption", "video-qa"))  # half of a batch beside _IMAGE
_BALANCED = (*_IMAGE[:2], *(Portion(one.task, part=FEW) for one in _IMAGE[2:]))
_PROPORTIONAL = tuple(Portion(one.task, share=one.part, part=one.part) for one in _BALANCED)

TRAININGS: dict[str, Training] = {
    "image": Training(_IMAGE, FIRST),
    "vqa-only": Training((Portion("vqa"),), FIRST),
    "vqa-only-quarter": Training((Portion("vqa"),), FIRST, batch=1 / len(_IMAGE)),
    "unbalanced-balanced": Training(_BALANCED, FIRST),
    "unbalanced-proportional": Training(_PROPORTIONAL, FIRST),
    "image-longer": Training(_IMAGE, SECOND, "image"),
    "image-then-video": Training(_IMAGE + _VIDEO, SECOND, "image"),
    "video-from-start": Training(_IMAGE + _VIDEO, FIRST + SECOND),
    "video-only": Training(_VIDEO, 100),
    "audio-from-backbone": tuned("audio-caption", 80, BACKBONE),
    "audio-from-image": tuned("audio-caption", 80, "image-longer"),
    "audio-from-video": tuned("audio-caption", 80, "image-then-video"),
    "video-from-backbone": tuned("video-qa", 50, BACKBONE),
    "video-from-image": tuned("video-qa", 50, "image-longer"),
    "vqa-from-backbone": tuned("vqa", 80, BACKBONE),
    "vqa-from-video": tuned("vqa", 80, "video-only"),
    "vqa-from-image": tuned("vqa", 80, "image-longer"),
    "vqa-projections": tuned("vqa", 80, "image-longer", "projections"),
    "caption-from-image": tuned("caption", 80, "image-longer"),
    "caption-projections": tuned("caption", 80, "image-longer", "projections"),
}

_FOUR = tuple(portion.task for portion in _IMAGE)
_SIX = _FOUR + tuple(portion.task for portion in _VIDEO)

# The tasks that trainings are evaluated on, by comparison; tables keep their order.
COMPARISONS: dict[str, dict[str, tuple[str, ...]]] = {
    "balancing": {"unbalanced-proportional": _FOUR, "unbalanced-balanced": _FOUR, "image": _FOUR},
    "curriculum": {"video-from-start": _SIX, "image-then-video": _SIX},
    "tasks": {"vqa-only": ("vqa",), "vqa-only-quarter": ("vqa",), "image": ("vqa",)},
    "modalities": {
        "image-longer": _FOUR,
        "image-then-video": _FOUR,
        "audio-from-backbone": ("audio-caption",),
        "audio-from-image": ("audio-caption",),
        "audio-from-video": ("audio-caption",),
    },
    "directions": {
        "video-from-backbone": ("video-qa",),
        "video-from-image": ("video-qa",),
        "vqa-from-backbone": ("vqa",),
        "vqa-from-video": ("vqa",),
    },
    "linear-only": {
        "image-longer": ("vqa", "caption"),
        "vqa-from-image": ("vqa",),
        "vqa-projections": ("vqa",),
        "caption-from-image": ("caption",),
        "caption-projections": ("caption",),
    },
}


def lineage(name: str) -> Iterator[Training]:
    """Yield the trainings that led to a model, the first one first."""
    training = TRAININGS[name]
    if training.start != BACKBONE:
        yield from lineage(training.start)
    yield training


def comparisons_of(name: str) -> list[str]:
    """Return the comparisons that a training takes part in."""
    return [comparison for comparison, variants in COMPARISONS.items() if name in variants]


def tasks_of(comparisons: Mapping[str, Mapping[str, tuple[str, ...]]]) -> dict[str, list[str]]:
    """Return the tasks that each training is evaluated on in some comparisons, both in order of appearance."""
    found: dict[str, dict[str, None]] = {}
    for variants in comparisons.values():
        for name, tasks in variants.items():
            found.setdefault(name, {}).update(dict.fromkeys(tasks))
    return {name: list(tasks) for name, tasks in found.items()}
