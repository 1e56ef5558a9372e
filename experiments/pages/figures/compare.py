"""Models beside each other on all tasks: what they keep of the experts, and their scores with intervals."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from experiments.errors import StudyError
from experiments.grid.escapes import SHORT
from experiments.grid.escapes import figure as shown
from experiments.grid.rows import Records, mean_of, names_in
from experiments.grid.units import Unit, unit_of
from experiments.pages.figures.style import (
    GREEN,
    SMALL,
    TEXT,
    Figure,
    Styles,
    intervals_of,
    legend_below,
    level,
    seeds_of,
    styles_of,
    tidy,
    wrapped,
)
from experiments.pages.models import Model, kept_on
from experiments.pages.views import experts_of, is_single, reported_split, shifted_splits
from experiments.statistics.retention import GAIN

_COLOURS = "PuOr"  # told apart by every kind of colour blindness, and on paper by the numbers
_MEAN = "mean of framed"
_MOST = 1.0  # how far from 1 colours differ


def retention_map(rows: Records, models: Sequence[Model]) -> Figure:
    """Draw what models keep of each task's own expert, in %: reported scores left, the mean over shifted splits right.

    Rows are main metrics with the `owner` of their task. Framed are the tasks of a model's own experts. StudyError
    where no task has its expert's score.
    """
    split = reported_split(rows)
    tasks = names_in(rows, "task")
    groups = {split: {task: [split] for task in tasks}}
    groups["shifted data"] = {task: shifted_splits(rows, task) for task in tasks if shifted_splits(rows, task)}
    owners = {row["task"]: row["owner"] for row in rows}
    measured: dict[tuple[str, str], tuple[np.ndarray, str]] = {}
    for group, wanted in groups.items():
        own = {task: kept_on(models, rows, task, splits) for task, splits in wanted.items()}
        own = {task: kept for task, kept in own.items() if np.isfinite(kept[0]).any()}
        measured |= {(group, task): kept for task, kept in own.items()}
        if len(own) > 1:
            measured[group, _MEAN] = _mean_of_own({task: kept for task, (kept, _) in own.items()}, models, owners), ""
    if not measured:
        raise StudyError("no task has an expert of its own whose score says anything, so nothing can be kept")
    columns, table = [*measured], np.array([values for values, _ in measured.values()]).T
    longest = min(max(len(word) for task in tasks for word in [*shown(task).split(), "framed"]), 12)
    width = 0.25 + 0.07 * longest  # of a column, inches
    figure = Figure(figsize=(2.6 + width * len(columns), 1.5 + 0.34 * len(models)), layout="constrained")
    axis = figure.subplots()
    far = min(_MOST, max(0.05, float(np.nanmax(np.abs(table - 1)))))
    drawn = axis.imshow(table, cmap=_COLOURS, norm=TwoSlopeNorm(1, 1 - far, 1 + far), aspect="auto")
    for (i, j), value in np.ndenumerate(table):
        if np.isfinite(value):
            ink = "white" if abs(value - 1) > 0.6 * far else "black"
            axis.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=TEXT, color=ink)
    _frame_own(axis, rows, models, [task for _, task in columns])
    _name_cells(axis, models, columns, width)
    if len(models) > 2:
        _add_bar(figure, axis, drawn, table, far)
    gains = list(dict.fromkeys(task for (_, task), (_, how) in measured.items() if how == GAIN))
    title = f"{_means(rows)}; framed: tasks of the model's own experts"
    if not np.isfinite(table).all():
        title += "; grey: not evaluated there"
    if gains:
        title += f"; share of the expert's gain over the pretrained model on {', '.join(map(shown, gains))}"
    if missing := [task for task in tasks if not any(task == one for _, one in columns)]:
        title += (
            f"; nothing can be kept on {', '.join(map(shown, missing))}: no expert's score, or none above the start"
        )
    legend_below(figure, [], title=title)
    return figure


def _mean_of_own(kept: Mapping[str, np.ndarray], models: Sequence[Model], owners: Mapping[str, str]) -> np.ndarray:
    """Return the mean over the tasks of each model's own experts, NaN where one is missing or there are none."""
    own = [[kept[task][i] for task in kept if owners[task] in model.experts] for i, model in enumerate(models)]
    return np.array([np.mean(values) if values else np.nan for values in own])


def _add_bar(figure: Figure, axis: Axes, drawn: AxesImage, table: np.ndarray, far: float) -> None:
    """Add the scale of colours as far as there are numbers, `far` from 1 at most: the scale ends there."""
    low = max(1 - far, min(1.0, float(np.nanmin(table))))
    high = min(1 + far, max(1.0, float(np.nanmax(table))))
    bar = figure.colorbar(drawn, ax=axis, shrink=0.9, pad=0.01, aspect=30)
    ticks = [tick for tick in np.arange(0, 3.05, 0.1 if high - low < 0.6 else 0.2) if low <= tick <= high]
    bar.set_ticks(ticks, labels=[f"{100 * tick:.0f}" for tick in ticks])
    bar.ax.set_ylim(low, high)
    bar.ax.tick_params(labelsize=SMALL)
    bar.set_label("% of the task's own expert", fontsize=SMALL)


def _means(rows: Records) -> str:
    several = len(names_in(rows, "seed")) > 1
    return f"means over {seeds_of(rows)}" if several else f"of {seeds_of(rows)}"


def score_dots(rows: Records, models: Sequence[Model], *, styles: Styles | None = None) -> Figure:
    """Draw the scores of models with their 95 % intervals, a column a task in its unit, a line a split; dots of merged
    models are filled.

    Rows are main metrics with the `owner` of their task, whose own expert is the dotted line. StudyError where no model
    has a score.
    """
    there = {(row["task"], row["split"]) for model in models for row in model.rows}
    tasks = [task for task in names_in(rows, "task") if any(task == one for one, _ in there)]
    wanted = dict.fromkeys([reported_split(rows), *shifted_splits(rows)])
    splits = [split for split in wanted if any(split == one for _, one in there)]
    if not splits:
        raise StudyError("no model has a score on a split that is reported: run the study")
    height = 0.19 * len(models) + 0.62
    figure = Figure(figsize=(2.4 + 2.1 * len(tasks), height * len(splits) + 0.9), layout="constrained")
    grid = figure.subplots(len(splits), len(tasks), squeeze=False, sharex="col", sharey=True)
    looks = styles_of(dict.fromkeys(str(model.rows[0]["series"]) for model in models), styles)
    for j, task in enumerate(tasks):
        unit = unit_of([row for row in rows if row["task"] == task])
        own = [i for i, split in enumerate(splits) if (task, split) in there]
        for i, axis in enumerate(grid[:, j]):
            if i in own:
                here = [row for row in rows if (row["task"], row["split"]) == (task, splits[i])]
                _draw_dots(axis, here, unit, models, looks)
                axis.set_title(wrapped(f"{shown(task)}, {shown(splits[i])}", 1.9), fontsize=TEXT)
            elif j:  # the first column holds the names
                axis.set_axis_off()
        metric = names_in([row for row in rows if row["task"] == task], "metric")[0]
        words = f"{shown(metric)}" + f" ({shown(unit.words, 2 * SHORT)})" * bool(unit.words)
        grid[own[-1], j].set_xlabel(wrapped(words, 1.9, SMALL), fontsize=SMALL)
        grid[own[-1], j].tick_params(labelbottom=True)
    names = [wrapped(shown(model.name, 2 * SHORT), 2.2, SMALL) for model in models]
    grid[0, 0].set_yticks(range(len(models)), names, fontsize=SMALL)
    grid[0, 0].set_ylim(len(models) - 0.4, -0.6)
    legend_below(figure, grid.flat, title=_told(rows, models))
    return figure


def _draw_dots(axis: Axes, rows: Records, unit: Unit, models: Sequence[Model], looks: Styles) -> None:
    """Draw a dot a model, the mean over its seeds, those of single models hollow."""
    here = {str(row["key"]) for row in rows}
    for place, model in enumerate(models):
        own = [row for row in model.rows if str(row["key"]) in here]
        if not own:
            continue
        value, lo, hi = (unit.factor * mean_of(own, name) for name in ("value", "lo", "hi"))
        style = looks[str(own[0]["series"])]
        if np.isfinite([lo, hi]).all():
            axis.plot([lo, hi], [place, place], color=style.color, lw=1.1, solid_capstyle="butt")
        face = "white" if is_single(own[0]) else style.color
        look = {**style.line(), "ls": "none", "ms": max(style.size, 5), "mew": 1.1}
        axis.plot(value, place, **look, mfc=face, zorder=3)
    expert = level(rows, rows[0]["owner"]) if rows[0]["owner"] else None
    if expert is not None:
        kinds = {row["experts"] for row in rows if is_single(row) and experts_of(row) == [row["owner"]]}
        label = "the task's own expert" if len(kinds) == 1 else "the task's own expert, mean over the kinds"
        axis.axvline(expert, color=GREEN, lw=1.2, ls=(0, (1, 1.5)), zorder=0, label=label)
    tidy(axis)


def _told(rows: Records, models: Sequence[Model]) -> str:
    single = " Hollow: single models." * any(is_single(model.rows[0]) for model in models)
    bars = f"; bars: {intervals_of(rows)}" if any(np.isfinite(row["lo"]) for row in rows) else ""
    return f"Dots: scores, {_means(rows)}{bars}.{single}"


def _frame_own(axis: Axes, rows: Records, models: Sequence[Model], tasks: Sequence[str]) -> None:
    owners = {row["task"]: row["owner"] for row in rows}
    for i, model in enumerate(models):
        for j, task in enumerate(tasks):
            if task in owners and owners[task] in model.experts:
                frame = {"fill": False, "edgecolor": "black", "linewidth": 1.1, "zorder": 3}
                axis.add_patch(Rectangle((j - 0.46, i - 0.44), 0.92, 0.88, **frame))


def _name_cells(axis: Axes, models: Sequence[Model], columns: Sequence[tuple[str, str]], width: float) -> None:
    """Write tasks above the columns, the splits above these, and the models beside the lines."""
    names = [wrapped(shown(task), width, SMALL) for _, task in columns]
    axis.set_xticks(range(len(columns)), names, fontsize=SMALL)
    lines = [wrapped(shown(one.name, 3 * SHORT), 2.9, SMALL) for one in models]
    axis.set_yticks(range(len(models)), lines, fontsize=SMALL)
    axis.tick_params(top=True, bottom=False, labeltop=True, labelbottom=False, length=0)
    axis.set_facecolor("#eeeeee")
    axis.spines[:].set_visible(False)
    groups = [group for group, _ in columns]
    deepest = max(name.count("\n") for name in names)
    for group in dict.fromkeys(groups):
        first, count = groups.index(group), groups.count(group)
        if first:
            axis.axvline(first - 0.5, color="white", lw=5)
        text = wrapped(shown(group), width * count, TEXT)
        style = {"ha": "center", "va": "bottom", "fontsize": TEXT, "weight": "bold", "annotation_clip": False}
        place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        above = (0, 12 + (deepest + 1) * (SMALL + 2))
        axis.annotate(text, (first + count / 2 - 0.5, 1), above, **place, **style)
