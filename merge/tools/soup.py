"""Averages that are chosen by evaluating them: soups, trailing averages of a run, the path of WiSE-FT.

Everything takes state dicts (open checkpoints are read lazily) and functions that judge one; nothing is written.
"""

# Tensor.backward and torch.optim carry no types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from merge.engine.memory import StateDict, average, interpolate
from merge.errors import MergeError
from merge.plan.policy import Policy
from merge.plan.rows import aligned, assembled
from merge.plan.units import plan

Evaluate = Callable[[StateDict], float]
Loss = Callable[[Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Trial:
    """One evaluation: which checkpoints were averaged, the score, and whether the soup took it over."""

    members: tuple[str, ...]
    score: float
    kept: bool


@dataclass(frozen=True)
class Soup:
    """A chosen average: its weights, the share of every checkpoint by name, and every evaluation on the way."""

    state: dict[str, Tensor]
    shares: Mapping[str, float]
    history: tuple[Trial, ...] = ()


@dataclass(frozen=True)
class Point:
    """A ratio, the share of the second checkpoint, and its score."""

    ratio: float
    score: float


def uniform_soup(checkpoints: Mapping[str, StateDict], policy: Policy | None = None) -> Soup:
    """The plain average of all (Wortsman et al. 2022, section 3)."""
    return Soup(average(checkpoints, None, policy), dict.fromkeys(checkpoints, 1 / len(checkpoints)))


def greedy_soup(checkpoints: Mapping[str, StateDict], evaluate: Evaluate, policy: Policy | None = None) -> Soup:
    """Add checkpoints from the best down, keeping each that does not lower the score (Wortsman et al. 2022, recipe 1).

    `evaluate` judges a state dict, larger is better, on a validation split. It is called 2n - 1 times for n
    checkpoints; of equal scores the earlier checkpoint comes first. Raises MergeError without checkpoints.
    """
    if not checkpoints:
        raise MergeError("a soup needs at least one checkpoint")
    scores = {name: evaluate(state) for name, state in checkpoints.items()}
    first, *others = sorted(checkpoints, key=lambda name: -scores[name])
    history = [Trial((name,), score, name == first) for name, score in scores.items()]
    members, best = [first], scores[first]
    state = interpolate(checkpoints[first], checkpoints[first], 0.0, policy)
    for name in others:
        tried = average({key: checkpoints[key] for key in [*members, name]}, None, policy)
        score = evaluate(tried)
        kept = score >= best
        history.append(Trial((*members, name), score, kept))
        if kept:
            members, best, state = [*members, name], score, tried
    return Soup(state, dict.fromkeys(members, 1 / len(members)), tuple(history))


def learned_soup(
    checkpoints: Mapping[str, StateDict], loss: Loss, *, steps: int, rate: float, policy: Policy | None = None
) -> Soup:
    """Shares that gradient descent finds, one for each checkpoint (Wortsman et al. 2022, appendix I).

    `loss` maps a state dict to a scalar that can be differentiated with respect to its tensors, such as
    `lambda state: criterion(torch.func.functional_call(model, state, batch), target)`. The shares are a softmax, equal
    at the start, moved by `steps` steps of Adam at `rate`. A score in the history is minus the loss before that step.
    """
    names = list(checkpoints)
    states = list(checkpoints.values())
    units = plan(states, names, policy or Policy())
    logits = torch.zeros(len(names), requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=rate)
    history: list[Trial] = []
    for _ in range(steps):
        shares = logits.softmax(0)
        mixed: dict[str, Tensor] = {}
        for unit in units:
            tensors = [states[index][unit.name].detach() for index in unit.sources]
            parts = aligned(tensors, unit.assembly)
            value = parts[0]
            if unit.kind == "merge" and value.dtype.is_floating_point:
                mine = shares if len(parts) == len(states) else shares[list(unit.sources)]
                mine = mine if len(parts) == len(states) else mine / mine.sum()
                value = torch.stack([share * part.float() for share, part in zip(mine, parts, strict=True)]).sum(0)
            value = assembled(tensors, unit.assembly, value.to(unit.dtype), unit.shape)
            mixed.update(dict.fromkeys(unit.names, value))
        lost = loss(mixed)
        optimizer.zero_grad()
        lost.backward()
        optimizer.step()
        history.append(Trial(tuple(names), -lost.item(), True))
    found = [float(share) for share in logits.detach().double().softmax(0)]
    return Soup(average(checkpoints, found, policy), dict(zip(names, found, strict=True)), tuple(history))


# -- a training run --------------------------------------------------------------------------------------------------


def ema_weights(count: int, decay: float) -> list[float]:
    """The weights in which an exponential moving average of `count` checkpoints, oldest first, results.

        >>> ema_weights(3, 0.5)
        [0.25, 0.25, 0.5]

    They can be given to "average" in a recipe, so that files are averaged in one pass. Raises MergeError for no
    checkpoints and for a decay outside [0, 1).
    """
    if count < 1 or not 0 <= decay < 1:
        raise MergeError(f"a moving average needs checkpoints and a decay in [0, 1), not {count} and {decay:g}")
    return [decay ** (count - 1)] + [(1 - decay) * decay ** (count - 1 - index) for index in range(1, count)]


def ema(checkpoints: Sequence[StateDict], decay: float, policy: Policy | None = None) -> dict[str, Tensor]:
    """The exponential moving average of a run's checkpoints, oldest first: `decay * average + (1 - decay) * next`."""
    return average(checkpoints, ema_weights(len(checkpoints), decay), policy)


def lawa(checkpoints: Sequence[StateDict], window: int, policy: Policy | None = None) -> dict[str, Tensor]:
    """The plain average of the latest `window` checkpoints of a run (LAWA, Kaddour 2022).

    Raises MergeError where there are fewer.
    """
    if not 2 <= window <= len(checkpoints):
        raise MergeError(f"a window of {window} checkpoints needs 2 to {len(checkpoints)}, which is what the run has")
    return average(checkpoints[-window:], None, policy)


# -- a path ----------------------------------------------------------------------------------------------------------


def wise_ft(
    pretrained: StateDict,
    finetuned: StateDict,
    evaluate: Evaluate,
    ratios: Sequence[float],
    policy: Policy | None = None,
) -> tuple[Point, list[Point]]:
    """The best point on the line from a pretrained to a finetuned model, and all points (WiSE-FT).

    The ratio is the share of the finetuned one, alpha in Wortsman et al. 2022 (arXiv 2109.01903). `evaluate` judges a
    state dict on a validation split, larger is better; of equal scores the first ratio wins. Raises MergeError without
    ratios.
    """
    points = [Point(ratio, evaluate(interpolate(pretrained, finetuned, ratio, policy))) for ratio in ratios]
    if not points:
        raise MergeError("the path of WiSE-FT needs at least one ratio")
    return max(points, key=lambda point: point.score), points
