"""Figures of a study of any model: tasks with other names than experts, several methods, units, policies and seeds."""

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from experiments.grid.rows import records
from experiments.pages.figures import draw
from experiments.pages.models import kept_on, merges_of, singles_of
from experiments.pages.views import main_metrics, one_policy, with_intervals, with_owners, with_series

OWNERS = {"reads": "left", "a task with a name of many words": "right", "free": ""}
LOSS = "a task with a name of many words"
SHIFT = {"val": 0.0, "test": 0.0, "noisy": 0.1, "tilted": 0.2}
SEEDS = (0, 1, 2)


def rows_of(shares, method, *, seed=0, batchnorm="average", lift=0.0, **parameters):
    """Rows of a point on every task and split: a share of right answers, a loss and one number without interval."""
    kind = "pretrained" if "pretrained" in shares else "expert"
    for (task, owner), (split, shift) in itertools.product(OWNERS.items(), SHIFT.items()):
        part = shares.get(owner, 0.3)
        good = 0.4 + 0.5 * part + lift + 0.01 * seed - shift
        told = {
            "reads": {"metric": "accuracy", "value": good, "lo": good - 0.05, "hi": good + 0.05, "n": 50},
            LOSS: {"metric": "nll", "value": 2 - good, "lo": 1.9 - good, "hi": 2.1 - good, "n": 50,
                   "unit": "nats", "higher_is_better": False},
            "free": {"metric": "reward", "value": 30 * good - 12, "lo": np.nan, "hi": np.nan, "n": 0},
        }[task]  # fmt: skip
        made = {"shares": shares, "method": method, "experts": kind, "batchnorm": batchnorm, "parameters": parameters}
        key = f"{sorted(shares.items())} {method} {batchnorm} {parameters} {task} {split} {seed}"
        yield {"study": "s", "task": task, "split": split, "seed": seed, "note": "", "key": key, **made, **told}


@pytest.fixture(scope="module")
def rows():
    found = []
    for seed in SEEDS:
        for name in ("pretrained", "left", "right", "third"):
            found += rows_of({name: 1.0}, "single", seed=seed)
        for policy, share in itertools.product(("average", "from:left"), (0.25, 0.5, 0.75)):
            lift = 0.1 * share if policy == "average" else 0.0
            shares = {"left": 1 - share, "right": share}
            found += rows_of(shares, "interpolate", seed=seed, batchnorm=policy, lift=lift)
        for shares in ({"left": 0.5, "right": 0.5}, dict.fromkeys(("left", "right", "third"), 1 / 3)):
            for density in (0.1, 0.3, 1.0):
                found += rows_of(shares, "ties", seed=seed, lift=0.1 * (density == 0.3), density=density)
            found += rows_of(shares, "model-stock", seed=seed)
        found += rows_of({"left": 0.5, "right": 0.5}, "ensemble", seed=seed)
        found += rows_of({"left": 1.0}, "arcee-fusion", seed=seed, lift=-0.2)
    return records(found)


@pytest.fixture(scope="module")
def drawn(rows):
    found, missing = draw(rows, tasks=OWNERS)
    assert missing == []
    return {one.stem: one.figure for one in found}


def legend_of(artist):
    return [text.get_text().replace("\n", " ") for text in artist.get_texts()]


def test_every_shape_of_rows_has_its_figure(drawn):
    pair = ["curves_left_right", "plane_left_right", "batchnorm_left_right"]
    dots = ["dots_left+right", "dots_left+right+third", "dots_left"]
    ranked = ["ranking_left+right_expert", "ranking_left+right+third_expert"]
    assert set(drawn) == {"retention", "sweep_ties_density", *pair, *dots, *ranked, *(f"ood_{task}" for task in OWNERS)}


@pytest.mark.parametrize("kind", ["retention", "curves", "plane", "sweep", "batchnorm", "dots", "ood", "ranking"])
def test_no_text_and_no_axis_leaves_the_canvas(drawn, kind):
    for stem, figure in drawn.items():
        if not stem.startswith(kind):
            continue
        FigureCanvasAgg(figure)
        figure.canvas.draw()
        ticks = {label for axis in figure.axes for label in (*axis.get_xticklabels(), *axis.get_yticklabels())}
        for text in figure.findobj(Text):
            if text.get_visible() and text.get_text().strip() and text not in ticks:  # some ticks lie off the limits
                own = text.get_window_extent(figure.canvas.get_renderer())
                inside = own.x0 > -1 and own.y0 > -1 and own.x1 < figure.bbox.x1 + 1 and own.y1 < figure.bbox.y1 + 1
                assert inside, f"{stem}: {text.get_text()!r} ends at {own}"
        whole = figure.get_tightbbox()
        assert min(whole.min) > -0.02, stem
        assert (whole.max < figure.get_size_inches() + 0.02).all(), stem


def test_an_axis_has_one_unit_and_says_where_lower_is_better(drawn):
    curves = drawn["curves_left_right"]
    labels = [" ".join(axis.get_ylabel().split()) for axis in curves.axes]
    assert labels[0] == "reads, test: accuracy (%)"
    assert labels[1].endswith("nll (nats, lower is better)")
    assert len(curves.axes) == 2  # its own tasks, and none is drawn over another
    spots = [axis.get_subplotspec() for figure in drawn.values() for axis in figure.axes if axis.get_subplotspec()]
    assert len({id(spot) for spot in spots}) == len(spots)
    line = next(line for line in curves.axes[1].get_lines() if str(line.get_label()).startswith("interpolate"))
    assert line.get_label() == "interpolate, lowest at 1.00 right"
    assert line.get_ydata()[-1] == pytest.approx(np.mean([2 - 0.9 - 0.01 * seed for seed in SEEDS]))


def test_series_are_how_models_were_made_and_legends_list_what_is_drawn(drawn):
    curves = drawn["curves_left_right"]
    names = [label.partition(", highest")[0] for label in legend_of(curves.axes[0].get_legend())]
    assert names == ["interpolate", "ties, density 0.3", "model-stock", "ensemble", "pretrained"]  # chosen on val
    assert legend_of(curves.legends[0]) == [
        "95 % interval of the examples, mean over 3 training seeds: evaluation noise only",
        "a training seed each",
        "straight line between the ends",
    ]
    assert not any("arcee" in label for label in names)
    outside = legend_of(drawn["ood_reads"].legends[0])
    assert {"expert", "interpolate", "a single model", "line through 12 single models (a seed each)"} <= set(outside)
    assert "bars" not in drawn["ood_free"].legends[0].get_title().get_text()  # one number has no interval


def test_a_merge_of_one_expert_is_no_end(drawn):
    line = next(one for one in drawn["curves_left_right"].axes[0].get_lines() if "interpolate" in str(one.get_label()))
    assert line.get_ydata()[0] == pytest.approx(100 * np.mean([0.9 + 0.01 * seed for seed in SEEDS]))
    names = [text.get_text() for text in drawn["dots_left"].axes[0].get_yticklabels()]
    assert names == ["pretrained", "arcee-fusion"]


def test_a_parameter_is_a_curve_with_the_best_value_ringed(drawn):
    figure = drawn["sweep_ties_density"]
    for axis, best in zip(figure.axes[:2], (0.3, 0.3), strict=True):
        line = next(one for one in axis.get_lines() if one.get_label() == "left+right")
        assert line.get_xdata().tolist() == [0.1, 0.3, 1.0]
        rings = [one.get_xdata()[0] for one in axis.get_lines() if one.get_markersize() == 10]
        assert rings == [best, best]
    assert axis.get_xlabel() == "density of ties"


def test_scores_in_shares_are_on_logit_axes_and_others_are_not(drawn):
    assert {(axis.get_xscale(), axis.get_yscale()) for axis in drawn["ood_reads"].axes} == {("logit", "logit")}
    assert {axis.get_xscale() for name in (LOSS, "free") for axis in drawn[f"ood_{name}"].axes} == {"linear"}
    named = {text.get_text() for text in drawn["ood_reads"].axes[0].texts}
    assert {"pretrained", "left", "right", "third"} <= named


def test_retention_is_of_the_tasks_own_expert_and_chosen_on_val(rows, drawn):
    found = with_series(one_policy(main_metrics(with_owners(rows, OWNERS))))
    models = {model.name: model for model in [*singles_of(found), *merges_of(found)]}
    best = models["left+right 0.75/0.25, interpolate"]
    kept, how = kept_on([best, models["right"]], found, LOSS, ["test"])
    assert how == "expert / merged"
    merged = 2 - (0.4 + 0.5 * 0.25 + 0.025)
    wanted = np.mean([(1.1 - 0.01 * seed) / (merged - 0.01 * seed) for seed in SEEDS])
    assert kept == pytest.approx([wanted, 1])
    assert kept_on([best], found, "free", ["test"])[1] == ""  # nobody's
    texts = [text.get_text() for text in drawn["retention"].axes[0].texts]
    assert f"{100 * wanted:.0f}" in texts
    assert {"test", "shifted data"} <= set(texts)


def test_a_point_chosen_on_val_gives_way_to_one_that_was_asked_more(rows):
    rows = one_policy(rows)
    asked = [row for row in rows if row["split"] in ("val", "test") or row["shares"].get("left", 0) in (0.0, 0.5, 1.0)]
    named = [{model.name for model in merges_of(with_series(with_owners(own, OWNERS)))} for own in (rows, asked)]
    assert "left+right 0.75/0.25, interpolate" in named[0] - named[1]
    assert "left+right, interpolate" in named[1] - named[0]


def test_the_scale_of_colours_ends_where_its_colours_do():
    """Also where the farthest number is rounded off it: 1 - (1 - v) is not v."""
    values = [v for v in np.random.default_rng(0).random(50).round(3) if 1 - (1 - v) > v][:3]
    assert values
    for value in values:
        own = [row for name in ("pretrained", "left", "right") for row in rows_of({name: 1.0}, "single")]
        own += [*rows_of({"left": 0.5, "right": 0.5}, "interpolate"), *rows_of({"left": 0.5, "right": 0.5}, "ensemble")]
        made = [row | {"value": value if len(row["shares"]) > 1 else 1.0} for row in own if row["task"] == "reads"]
        ((figure,), _) = draw(records(made), tasks=OWNERS, only=["retention"])
        FigureCanvasAgg(figure.figure).draw()
        bar = figure.figure.axes[1]
        assert np.isfinite(bar.transData.transform([(0, end) for end in bar.get_ylim()])).all()


def test_stars_of_experts_do_not_hide_each_other(drawn):
    stars = [line for line in drawn["plane_left_right"].axes[0].get_lines() if line.get_marker() == "*"]
    assert len(stars) == 1  # one for each kind of experts, whatever methods start there
    assert stars[0].get_markerfacecolor() == "none"


def test_intervals_are_over_seeds_where_there_are_several(rows):
    own = [row for row in rows if row["split"] == "test" and row["method"] == "model-stock" and len(row["shares"]) == 2]
    rng = np.random.default_rng(0)
    scores = {row["key"]: (rng.random(50) < 0.6).astype(float) for row in own if row["task"] == "reads"}
    found = with_intervals(records(own), scores)
    reads, free = ([row for row in found if row["task"] == task] for task in ("reads", "free"))
    assert {row["interval"] for row in reads} == {"seeds and examples"}
    assert {row["interval"] for row in free} == {"seeds"}
    assert len({(row["lo"], row["hi"]) for row in free}) == 1
    half = 4.303 * 0.3 / np.sqrt(3)  # Student's t of three seeds that lie 0.3 apart
    assert free[0]["hi"] - np.mean([row["value"] for row in free]) == pytest.approx(half, rel=1e-3)
    (alone,) = with_intervals(records(own[:1]), scores)
    assert alone["lo"] == own[0]["lo"]


def test_rows_alone_fall_back_to_tasks_of_the_experts_names(rows):
    stems = [one.stem for one in draw([row for row in rows if row["method"] != "ties"])[0]]
    assert "curves_left_right" in stems
    assert "plane_left_right" not in stems
    curves = next(one.figure for one in draw(rows)[0] if one.stem == "curves_left_right")
    assert len(curves.axes) == 3  # no task is an expert's own: all are shown
