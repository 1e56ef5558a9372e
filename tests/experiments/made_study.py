"""A study of small models with one BatchNorm layer, whose functions can be imported by other processes."""

import torch
from torch import nn

import experiments

N = 40
CALLS: list[tuple[str, str]] = []


def make_model():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def weights(seed):
    """Weights drawn from a seed, with statistics that are no longer those of a fresh layer."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make_model()
        model[1].running_mean.normal_()
        model[1].running_var.uniform_(0.5, 2)
        return model.state_dict()


def inputs(split="train"):
    return torch.randn(N, 3, generator=torch.Generator().manual_seed(len(split)))


def right(model, split, column):
    """Whether each answer is the sign of a column of the inputs."""
    x = inputs(split)
    return model(x).argmax(1) == (x[:, column] > 0)


def score_up(model, split):
    CALLS.append(("up", split))
    return right(model, split, 0)


def score_down(model, split):
    CALLS.append(("down", split))
    return right(model, split, 1)


def score_both(model, split):
    """Two metrics of different units, one of them a loss."""
    x = inputs(split)
    logits = model(x)
    labels = (x[:, 0] > 0).long()
    return {
        "accuracy": (logits.argmax(1) == labels).tolist(),
        "nll": nn.functional.cross_entropy(logits, labels, reduction="none"),
    }


def study(**changes):
    given = {
        "name": "signs",
        "model": make_model,
        "experts": {"up": weights(1), "down": weights(2)},
        "tasks": {"up": score_up, "down": experiments.Task(score_down, inputs=[inputs()])},
        "splits": ("val", "test", "noisy"),
        "points": 5,
    }
    return experiments.Study(**{**given, **changes})
