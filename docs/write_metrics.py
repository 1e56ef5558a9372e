"""The page of metrics, from `METRICS`, and the glossary, from the words that reports explain."""

from __future__ import annotations

import math

from experiments.pages.glossary import GLOSSARY
from unival_core.metrics import METRICS

HEAD = """# Metrics

What UnIVAL's tasks are scored by: `unival_core.METRICS`. Scores are kept as they are computed, and printed times 100
where the unit says so. A study of your own names its metrics itself ([studies](../studies.md)).

| metric | what it is | unit | range | better is | mean over examples |
|---|---|---|---|---|---|
"""


def metrics() -> str:
    """Give the text of the page of metrics."""
    rows = [
        f"| {name} | {one.label} | {one.unit} | {_bound(one.range[0])} to {_bound(one.range[1])} | "
        f"{'higher' if one.higher_is_better else 'lower'} | {'yes' if one.is_mean else 'no'} |"
        for name, one in METRICS.items()
    ]
    return HEAD + "\n".join(rows) + "\n"


def glossary() -> str:
    """Give the text of the glossary."""
    words = [f"## {word}\n\n{text}\n" for word, text in sorted(GLOSSARY.items(), key=lambda one: one[0].lower())]
    return "# Glossary\n\nThe words of reports, figures and tables.\n\n" + "\n".join(words)


def _bound(value: float) -> str:
    return "∞" if math.isinf(value) else f"{value:g}"
