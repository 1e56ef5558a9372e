"""Merging methods: a method is a pure function, one line in `METHODS` and one row in the tests."""

from __future__ import annotations

from merge.methods import linear, spherical
from merge.methods.method import Method, Parameter

RATIO = Parameter("share of the second checkpoint", low=0.0, high=1.0)
WEIGHTS = Parameter("share of each checkpoint", low=0.0, high=1.0, each=True, simplex=True)
SCALE = Parameter("multiplier of the summed task vectors")
FACTORS = Parameter("multiplier of each task vector", default=1.0, each=True)

METHODS: dict[str, Method] = {
    "interpolate": Method(
        linear.interpolate,
        "(1 - ratio) * A + ratio * B",
        "UnIVAL, arXiv 2307.16184, section 5",
        {"ratio": RATIO},
        elementwise=True,
        inputs=(2, 2),
        single=linear.interpolate_single,
    ),
    "average": Method(
        linear.average,
        "sum_i weights_i * X_i",
        "Model soups, arXiv 2203.05482",
        {"weights": WEIGHTS},
        elementwise=True,
        single=linear.average_single,
    ),
    "task-arithmetic": Method(
        linear.task_arithmetic,
        "base + scale * sum_i weights_i * (X_i - base)",
        "Task arithmetic, arXiv 2212.04089",
        {"scale": SCALE, "weights": FACTORS},
        takes_base=True,
        elementwise=True,
        inputs=(1, None),
        single=linear.task_arithmetic_single,
    ),
    "slerp": Method(
        spherical.slerp,
        "sin((1 - ratio) w) / sin(w) * A + sin(ratio w) / sin(w) * B, w the angle between A and B",
        "Shoemake 1985",
        {"ratio": RATIO},
        inputs=(2, 2),
        single=linear.interpolate_single,
    ),
}

__all__ = ["METHODS", "Method", "Parameter"]
