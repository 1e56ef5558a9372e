"""Averages along a training run."""

from __future__ import annotations

from functools import partial

from merge.methods import shortcuts
from merge.methods.entries.words import COPIED, RELATIVE
from merge.methods.method import Method, Parameter

ROUNDED = "equal elements stay to the bit, infinite ones too; in float64, rounded once"

RUNNING: dict[str, Method] = {
    "series": Method(
        "merge.methods.running:series",
        "The weighted average along a training run, as a running sum in the order of the inputs.",
        "m_k = m_(k-1) + weights_k / (weights_1 + ... + weights_k) * (X_k - m_(k-1))",
        "Stochastic weight averaging, arXiv 1803.05407; LAWA, arXiv 2209.14981",
        {"weights": RELATIVE},
        elementwise=True,
        inputs=(1, None),
        single=partial(shortcuts.one_input, relative=True),
        edges=f"{ROUNDED}; {COPIED}; first weights of sum 0 are an error",
        group="along a training run",
        ordered=True,
    ),
    "ema": Method(
        "merge.methods.running:ema",
        "The exponential moving average along a training run, in the order of the inputs.",
        "m_1 = X_1, m_k = decay * m_(k-1) + (1 - decay) * X_k",
        "Polyak and Juditsky 1992",
        {"decay": Parameter("part of the average that a further checkpoint leaves", low=0.0, high=1.0, example=0.9)},
        elementwise=True,
        inputs=(1, None),
        single=shortcuts.last_or_first,
        shares=shortcuts.by_decay,
        edges=f"{ROUNDED}; decay 0 is the last, 1 the first, to the bit",
        group="along a training run",
        ordered=True,
        grid={"decay": (0.5, 0.9)},
    ),
}
