"""How far the answers of models may be believed, beside each other: expected calibration errors."""

from __future__ import annotations

from experiments.grid.rows import Records, names_in
from experiments.pages.plain import Plain, with_interval
from experiments.pages.views import has_equal_shares, is_single, main_metrics, method_words, one_policy
from experiments.statistics.calibration import BINS, CONFIDENCE, calibration_error, is_share
from experiments.statistics.summary import CHOOSING
from experiments.statistics.tests import Examples


def calibration_table(rows: Records, scores: Examples) -> Plain | None:
    """Tabulate the calibration error of single models and of points of equal shares, on every task and split of which
    rows have a confidence; None where none has."""
    sure = {_place(row): row["key"] for row in rows if row["metric"] == CONFIDENCE}
    shown = [row for row in one_policy(rows) if is_single(row) or has_equal_shares(row)]
    errors: dict[tuple[str, ...], dict[str, list[float]]] = {}
    for row in main_metrics([row for row in shown if row["metric"] != CONFIDENCE and row["split"] not in CHOOSING]):
        right, said = (scores.get(str(key), ()) for key in (row["key"], sure.get(_place(row))))
        if len(right) == len(said) and len(right) and is_share(right) and is_share(said):
            label = row["point"], row["experts"], method_words(row)
            own = errors.setdefault(label, {}).setdefault(f"{row['task']} {row['split']}", [])
            own.append(100 * calibration_error(said, right))
    if not errors:
        return None
    columns = list(dict.fromkeys(name for own in errors.values() for name in own))
    lines = [
        [*label, *(with_interval(own[name]) if name in own else "" for name in columns)]
        for label, own in errors.items()
    ]
    text = (
        "Expected calibration error: how far the confidence in answers and their scores are apart, in "
        f"{BINS} bins of equal width; it grows a little as there are fewer examples."
    )
    if len(names_in(rows, "seed")) > 1:
        text += " Means over seeds, with Student's 95 % intervals over these."
    return Plain(["model", "experts", "method", *(f"{name}, %" for name in columns)], lines, 3, text)


def _place(row: dict) -> tuple[object, ...]:
    return row["point"], row["experts"], method_words(row), row["batchnorm"], row["task"], row["split"], row["seed"]
