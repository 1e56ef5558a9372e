"""The kinds of experts, and the steps that make one. A new kind is a function and an entry of KINDS.

A function gets where experts are made: a pocket, or what stands for it at setup base.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from experiments.errors import StudyError
from experiments.study.points import PRETRAINED, Expert
from experiments.unival.pocket.families import families
from experiments.unival.pocket.pipeline import Pocket, shared_out
from experiments.unival.pocket.pretrainings import BACKBONE, COMPARISONS, TRAININGS, Training
from experiments.unival.world.tasks import SIZES
from unival_core import TASKS, find_task
from unival_core.training import (
    DRAWING,
    JOINT,
    REWARD,
    REWARDS,
    STAGES,
    RewardOptions,
    RunFolder,
    TrainOptions,
    choose,
    options_for,
)

SEEDS_APART = 1000
UNSEEN = "pretrain"  # the split of a finetuning's start, not of its own
PARTS = 10  # of a finetuning, whose weights are kept at the end of each
DRAWN = ("image-generation", "caption")  # what the stage of drawing teaches
PROGRESS = {f"along-{100 * part // PARTS}": part / PARTS for part in range(1, PARTS)}  # by kind


@dataclass(frozen=True)
class Step:
    """One file of weights, `file` below `experts/`.

    With `tasks` a finetuning on them, by `options`, from its only parent or else from the pretrained weights; without
    tasks the uniform average of its parents. With `training` it is one of the study `pretraining`, and starts from its
    only parent or else from the backbone. A run keeps its weights at the end of each of so many equal `parts` of its
    updates, which are steps too, `kept` by their only parent. A finetuning reads the rows of `split`.
    """

    file: str
    parents: tuple[Step, ...] = ()
    tasks: tuple[str, ...] = ()
    options: TrainOptions | None = None
    training: Training | None = None
    parts: int = 1
    kept: bool = False
    split: str = "train"

    @property
    def sees_videos(self) -> bool:
        """Tell whether this step, or one before it, trains on videos."""
        return any(TASKS[task].medium == "video" for task in self.tasks) or any(one.sees_videos for one in self.parents)


class Place(Protocol):
    """Where experts are made: what the kinds of both setups ask of it."""

    @property
    def seed(self) -> int:
        """Return the seed of all training."""
        ...

    def recipe(self, task: str) -> TrainOptions:
        """Return the options of finetuning on a task."""
        ...


@dataclass(frozen=True)
class Kind:
    """How experts are finetuned.

    Attributes:
        step: the last step towards an expert at setup pocket. Raises StudyError where there can be none.
        published: whether the authors published such experts, of the tasks that name a checkpoint. Others are one's
            own files at setup base.
        at_base: whether setup base can make such experts from the published ones: `step` then takes any `Place`.
        is_whole: an expert is one model of a whole family of tasks, which stands beside mixtures and in none. There are
            such experts at setup pocket only.
    """

    step: Callable[[Pocket, Expert], Step] | Callable[[Place, Expert], Step]
    published: bool = False
    at_base: bool = False
    is_whole: bool = False


def vanilla(pocket: Place, expert: Expert) -> Step:
    """Finetune the pretrained weights on the expert's task."""
    return finetuned(pocket, f"vanilla/{expert.task}", expert.task)


def ratatouille(pocket: Place, expert: Expert) -> Step:
    """Finetune the family's other experts on the task, and average these (arXiv 2212.10445)."""
    folder = f"ratatouille/{expert.task}"
    runs = [
        finetuned(pocket, f"{folder}/from-{start.tasks[0]}", expert.task, start) for start in auxiliary(pocket, expert)
    ]
    return mean(folder, runs)


def fusing(pocket: Place, expert: Expert) -> Step:
    """Average the family's other experts, and finetune the average on the task (arXiv 2204.03044)."""
    folder = f"fusing/{expert.task}"
    return finetuned(pocket, f"{folder}/from-average", expert.task, mean(folder, auxiliary(pocket, expert)))


def fusing_with_own(pocket: Place, expert: Expert) -> Step:
    """Average all experts of the family, that of the task too, and finetune the average on the task: what the published
    scripts did, where the paper speaks of the others alone."""
    family = next((family for family in families().values() if expert.task in family), (expert.task,))
    members = [vanilla(pocket, Expert(task, task, "vanilla")) for task in family]
    start = mean(f"fusing-with-own/{'+'.join(family)}", members)
    return finetuned(pocket, f"fusing-with-own/{expert.task}/from-average", expert.task, start)


def longer(pocket: Pocket, expert: Expert) -> Step:
    """Finetune as `vanilla` does, with as many updates as a member of `ratatouille` sees in its two finetunings: the
    task's own, and the mean of those of the family's other tasks."""
    others = [pocket.recipe(step.tasks[0]).updates for step in auxiliary(pocket, expert)]
    updates = pocket.recipe(expert.task).updates + round(sum(others) / len(others))
    return finetuned(pocket, f"longer/{expert.task}", expert.task, updates=updates)


def soup(pocket: Pocket, expert: Expert) -> Step:
    """Average the vanilla expert and others that differ from it in nothing but the seed (arXiv 2203.05482): as many in
    all as `ratatouille` averages, but two at least.

    Their seeds are a thousand apart, so that the seeds of a study have no member in common.
    """
    folder, count = f"soup/{expert.task}", max(2, len(auxiliary(pocket, expert)))
    seeds = [pocket.seed + SEEDS_APART * member for member in range(1, count)]
    others = [finetuned(pocket, f"{folder}/seed-{seed}", expert.task, seed=seed) for seed in seeds]
    return mean(folder, [vanilla(pocket, expert), *others])


def along(pocket: Pocket, expert: Expert) -> Step:
    """Finetune as `vanilla` does, and stop on the way: the kind `along-30` at 30 % of the updates."""
    run = replace(finetuned(pocket, f"along/{expert.task}", expert.task), parts=PARTS)
    part = round(PROGRESS[expert.kind] * PARTS)
    return Step(f"along/{expert.task}/{RunFolder('').part(part, PARTS).name}", (run,), kept=True)


def joint(pocket: Pocket, expert: Expert) -> Step:
    """Finetune once on several tasks, with as many examples as their own finetunings see together."""
    tasks = tuple(expert.task.split("+"))
    own = [pocket.recipe(task) for task in tasks]
    updates = sum(options.updates * options.batch for options in own) // JOINT.batch
    options = replace(JOINT, updates=updates, seed=pocket.seed)
    return Step(f"joint/{'+'.join(tasks)}/last.safetensors", (), tasks, options)


def reward(pocket: Pocket, expert: Expert) -> Step:
    """Go on from the vanilla expert with rewards for boxes of one size, the expert's name."""
    return rewarded(pocket, expert, f"reward/{expert.name}", choose(REWARDS["pocket"], expert.name, "reward"))


def mixed_rewards(pocket: Pocket, expert: Expert) -> Step:
    """Go on from the vanilla expert as `reward` does, as long, with the rewards for boxes of all sizes at once."""
    return rewarded(pocket, expert, "mixed-rewards", RewardOptions())


def drawing_stage(pocket: Pocket, expert: Expert) -> Step:
    """Teach the pretrained model to draw, in a stage of its own: the start of `drawing`."""
    return Step("drawing/stage/last.safetensors", (), DRAWN, shared_out(DRAWING, pocket), split=UNSEEN)


def drawing(pocket: Pocket, expert: Expert) -> Step:
    """Finetune on the expert's task what has learnt to draw."""
    return finetuned(pocket, f"drawing/{expert.task}", expert.task, drawing_stage(pocket, expert))


KINDS: dict[str, Kind] = {
    "vanilla": Kind(vanilla, published=True),
    "ratatouille": Kind(ratatouille, at_base=True),
    "fusing": Kind(fusing, at_base=True),
    "fusing-with-own": Kind(fusing_with_own, at_base=True),
    "longer": Kind(longer),
    "soup": Kind(soup),
    "joint": Kind(joint, is_whole=True),
    "reward": Kind(reward),
    "mixed-rewards": Kind(mixed_rewards),
    "drawing": Kind(drawing),
    "drawing-stage": Kind(drawing_stage),
    **dict.fromkeys(PROGRESS, Kind(along)),
}


def step_of(pocket: Pocket, expert: Expert) -> Step | None:
    """Find the last step towards an expert; None for the pretrained weights.

    Raises StudyError or UnivalError where there is none.
    """
    if expert.kind == PRETRAINED:
        return None
    if expert.kind in KINDS:
        return KINDS[expert.kind].step(pocket, expert)
    if expert.kind.split("+")[0] in COMPARISONS:
        return pretraining(pocket, expert.name)
    raise StudyError(f"{expert.id}: no kind {expert.kind!r}: choose one of {', '.join(KINDS)}")


def with_parents(steps: Iterable[Step | None]) -> list[Step]:
    """List steps and all that they depend on, each once and behind its parents."""
    wanted = [step for step in steps if step is not None]
    return list(dict.fromkeys(one for step in wanted for one in (*with_parents(step.parents), step)))


# -- what several kinds are made of


def finetuned(pocket: Place, folder: str, task: str, *start: Step, **changes: int) -> Step:
    """Finetune on a task by its recipe, with `changes` of it."""
    return Step(f"{folder}/last.safetensors", start, (task,), replace(pocket.recipe(task), **changes))


def rewarded(pocket: Pocket, expert: Expert, folder: str, reward: RewardOptions) -> Step:
    """Go on from the vanilla expert with a reward, on the rows that count for it. Raises StudyError for a task that
    writes no boxes.

    They come, where the world has them, from the split that finetuning has not seen: of its own rows the expert gets
    most right, and boxes that are right whenever drawn teach nothing.
    """
    if find_task(expert.task).writes != "box":
        raise StudyError(f"{expert.id}: rewards are for boxes, so for the task grounding, not for {expert.task}")
    start = vanilla(pocket, expert)
    options = replace(shared_out(REWARD, pocket), reward=reward)
    split = UNSEEN if UNSEEN in SIZES[pocket.plan.world].rows[expert.task] else "train"
    return Step(f"{folder}/last.safetensors", (start,), start.tasks, options, split=split)


def auxiliary(pocket: Place, expert: Expert) -> list[Step]:
    """List the vanilla experts of the other tasks of an expert's family. Raises StudyError where there are none."""
    known = families()
    others = [task for family in known.values() if expert.task in family for task in family if task != expert.task]
    if not others:
        raise StudyError(f"{expert.id}: {expert.task} has no auxiliary tasks; families are {known}")
    return [vanilla(pocket, Expert(task, task, "vanilla")) for task in others]


def mean(folder: str, members: list[Step]) -> Step:
    """Average several uniformly; one is its own average."""
    return members[0] if len(members) == 1 else Step(f"{folder}/average.safetensors", tuple(members))


def pretraining(pocket: Pocket, name: str) -> Step:
    """Do a training of the study `pretraining`, behind those that it goes on from."""
    if pocket.preset == "quick":
        raise StudyError(f"{pocket.folder} has no backbone, as its preset is quick: pretrainings need the preset full")
    training = choose(TRAININGS, name, "pretraining")
    tasks = tuple(portion.task for portion in training.portions)
    options = options_for(find_task(tasks[0]), "pocket") if training.finetunes else STAGES["pocket"][0].options
    group, batch = training.group or options.group, round(options.batch * training.batch)
    options = replace(options, updates=training.updates, group=group, batch=batch)
    start = () if training.start == BACKBONE else (pretraining(pocket, training.start),)
    return Step(f"pretraining/{name}/last.safetensors", start, tasks, shared_out(options, pocket), training)
