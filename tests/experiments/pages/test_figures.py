"""Figures: what is drawn is what the rows say, nothing is cut off, and equal rows give equal files."""

import itertools

import matplotlib
import numpy as np
import pandas as pd
import pytest

from experiments.errors import StudyError
from experiments.pages import figures as plots
from experiments.pages.figures.style import BESIDE, OTHERS, SERIES, study_styles, styles_of
from tests import DATA

PAPER = DATA / "paper"
METRIC = {"vqa": "VQA accuracy", "caption": "CIDEr-D", "grounding": "Acc@0.5"}
PAIR = ("vqa", "caption")


def row(**fields):
    held = [share for share in fields.get("shares", {"all": 1}).values() if share]
    method = "single" if len(held) == 1 else "interpolate"
    base = {"study": "s", "experts": "vanilla", "method": method, "batchnorm": "average", "split": "test", "seed": 0}
    scored = {"metric": METRIC[fields["task"]], "lo": fields["value"] - 0.02, "hi": fields["value"] + 0.02, "key": "k"}
    return {**base, **scored, **fields}


def sweep(*, experts="vanilla", batchnorm="average", seed=0, lift=0.0, inner=False):
    rows = []
    for i in range(1, 10) if inner else range(11):
        share = i / 10
        shared = {
            "shares": {"vqa": 1 - share, "caption": share},
            "experts": experts,
            "batchnorm": batchnorm,
            "seed": seed,
        }
        rows.append(row(task="vqa", value=0.9 - 0.2 * share**3 + lift * share * (1 - share), **shared))
        rows.append(row(task="caption", value=1.3 - 1.1 * (1 - share) ** 3, **shared))
    return rows


def single(name, vqa, caption):
    shared = {"shares": {name: 1.0}, "experts": name}
    return [row(task="vqa", value=vqa, **shared), row(task="caption", value=caption, **shared)]


def curves_with_label(axis, start):
    return next(line for line in axis.get_lines() if str(line.get_label()).startswith(start))


def published(x_task, y_task):
    table = pd.read_csv(PAPER / "tradeoff.csv")
    table = table[(table.x_task == x_task) & (table.y_task == y_task)]
    rows = []
    for experts, points in table.groupby("experts", sort=False):
        for i, point in enumerate(points.itertuples()):
            share = i / 5 if np.isnan(point.x_share) else point.x_share
            shares = {"pretrained": 1.0} if experts == "pretrained" else {y_task: 1 - share, x_task: share}
            for task, metric, value in ((x_task, point.x_metric, point.x), (y_task, point.y_metric, point.y)):
                bare = {"lo": np.nan, "hi": np.nan, "metric": metric}
                made = {**row(task="vqa", value=0, shares=shares), "task": task, "experts": experts}
                rows.append({**made, **bare})
                rows[-1]["value"] = value / 100
    return rows


def test_curves_show_the_mean_of_the_seeds_with_its_band_and_names():
    rows = [*sweep(seed=0), *sweep(seed=1, lift=0.2), *sweep(experts="ratatouille", lift=0.4)]
    figure = plots.accuracy_curves(pd.DataFrame(rows + single("pretrained", 0.7, 0.5)), PAIR)
    left, right = figure.axes
    line = curves_with_label(left, "vanilla")
    shares = np.arange(11) / 10
    assert line.get_xdata() == pytest.approx(shares)
    assert line.get_ydata() == pytest.approx(100 * (0.9 - 0.2 * shares**3 + 0.1 * shares * (1 - shares)))
    band = left.collections[0].get_paths()[0].vertices
    assert [band[:, 1].min(), band[:, 1].max()] == pytest.approx([68, line.get_ydata().max() + 2])
    best = shares[np.argmax(line.get_ydata())]
    assert line.get_label() == f"vanilla, highest at {1 - best:.2f} vqa + {best:.2f} caption"
    assert curves_with_label(right, "vanilla").get_label() == "vanilla, highest at 1.00 caption"
    assert left.get_xlabel() == "share of caption in vqa → caption"
    assert left.get_ylabel() == "vqa, test: VQA accuracy (%)"
    assert right.get_ylabel() == "caption, test: CIDEr-D (× 100)"
    assert [text.get_text() for text in left.get_xticklabels()][::4] == ["0\nvqa\nexpert", "1\ncaption\nexpert"]
    assert list(curves_with_label(left, "pretrained").get_ydata()) == pytest.approx([70, 70])


def test_an_end_evaluated_once_serves_every_policy():
    rows = [*sweep(), *sweep(batchnorm="recalibrate:mixture", inner=True, lift=-0.1)]
    figure = plots.batchnorm_panels(rows, PAIR)
    assert [axis.get_title() for axis in figure.axes] == ["BatchNorm average", "BatchNorm recalibrate:mixture", "", ""]
    line = curves_with_label(figure.axes[1], "recalibrate")
    assert len(line.get_xdata()) == 11
    assert line.get_ydata()[[0, -1]] == pytest.approx([90, 70])
    behind = curves_with_label(figure.axes[1], "average, for comparison")
    assert behind.get_ydata() == pytest.approx(curves_with_label(figure.axes[0], "average").get_ydata())


def test_many_methods_leave_the_plane_its_room_and_are_told_by_numbers():
    own = [{**one, "series": "interpolate"} for one in sweep()]
    for number in range(1, 21):
        about = {"shares": {"vqa": 0.5, "caption": 0.5}, "method": "ties", "series": f"ties, density 0.{number:02}"}
        own += [row(task=task, value=0.85 + 0.004 * number, **about) for task in PAIR]
    figure = plots.tradeoff_plane(own, "vqa", "caption", by="series")
    figure.canvas.draw()
    axis = figure.axes[0]
    assert axis.get_window_extent().height > 2.8 * figure.dpi
    assert {str(number) for number in range(1, 21)} <= {text.get_text() for text in axis.texts}
    assert "7  ties, density 0.07" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_plane_joins_the_published_points_in_order():
    figure = plots.tradeoff_plane(published("vqa", "caption"), "vqa", "caption")
    axis = figure.axes[0]
    line = curves_with_label(axis, "vanilla")
    assert line.get_xdata() == pytest.approx([18.5, 71.7, 79, 81.5, 82.4, 82.3])
    assert line.get_ydata() == pytest.approx([136, 138.5, 130, 109.5, 78, 47.5])
    star = curves_with_label(axis, "pretrained")
    assert (*star.get_xdata(), *star.get_ydata()) == pytest.approx((69, 91))
    corner = [line.get_xydata()[1] for line in axis.get_lines() if len(line.get_xdata()) == 3]
    assert np.array(corner) == pytest.approx(np.array([[82.3, 136]]))
    assert {text.get_text() for text in axis.texts} == {"vqa expert", "caption expert"}
    assert "share of vqa in caption → vqa:\n0 to 1 in steps of 0.2" in figure.legends[0].get_title().get_text()


def radar_rows():
    rows = []
    for axis in pd.read_csv(PAPER / "radar.csv").itertuples():
        for experts, part in (("pretrained", 0), ("vanilla", 1 / 3), ("ratatouille", 1)):
            value = (axis.low + part * (axis.high - axis.low)) / 100
            fields = {"task": "vqa", "value": value, "experts": experts, "shares": {"all": 1.0}, "split": axis.group}
            rows.append({**row(**fields), "task": axis.task})
    return rows, {
        "in distribution": [(name, "ID") for name in ("vqa", "caption", "grounding", "entailment")],
        "out of distribution": [(name, "OOD") for name in ("okvqa", "vizwiz", "nocaps")],
    }


def test_radar_axes_have_one_scale():
    figure = plots.radar(*radar_rows())
    chart, table = figure.axes[0], figure.axes[2]
    assert [text.get_text() for text in chart.get_yticklabels()] == ["62.5 %", "75 %", "87.5 %", "100 %"]
    assert chart.get_xticklabels()[0].get_text() == "vqa, ID\nVQA accuracy"
    published = pd.read_csv(PAPER / "radar.csv")
    vqa = published[(published.task == "vqa") & (published.group == "ID")].iloc[0]
    assert curves_with_label(chart, "ratatouille").get_ydata() == pytest.approx([1] * 5)
    assert curves_with_label(chart, "pretrained").get_ydata()[0] == pytest.approx(vqa.low / vqa.high)
    cells = {place: cell.get_text().get_text() for place, cell in table.tables[0].get_celld().items()}
    assert cells[3, 0] == "75.5\n[73.5, 77.5]"
    assert cells[3, -1] == "ratatouille"


def ood_rows():
    rows = []
    for experts, split in itertools.product(("vanilla", "ratatouille"), ("test", "novel", "printed")):
        for line in sweep(experts=experts):
            drop = {"test": 0, "novel": 0.1, "printed": 0.3}[split]
            rows.append({**line, "split": split, "value": line["value"] - drop})
    return rows


def test_ood_scatter_pairs_the_splits_of_each_point():
    figure = plots.ood_scatter(ood_rows(), "vqa", ["novel", "printed"])
    for axis, drop in zip(figure.axes, (0.1, 0.3), strict=True):
        marks = curves_with_label(axis, "vanilla").get_xydata()
        assert len(marks) == 9
        assert marks[:, 0] - marks[:, 1] == pytest.approx(drop)
        assert (axis.get_xscale(), axis.get_yscale()) == ("logit", "logit")
    with pytest.raises(StudyError, match="no scores of vqa on split blurred"):
        plots.ood_scatter(ood_rows(), "vqa", ["blurred"])


def simplex_rows():
    rows = []
    for i, j in itertools.product(range(5), repeat=2):
        if i + j <= 4:
            shares = {"vqa": i / 4, "caption": j / 4, "grounding": (4 - i - j) / 4}
            value = 1 - (i / 4 - 0.5) ** 2 - (j / 4 - 0.25) ** 2
            rows += [row(task=task, value=value, shares=shares) for task in ("vqa", "grounding")]
    return rows


def test_ternary_marks_the_best_point():
    figure = plots.ternary(simplex_rows(), ("vqa", "caption", "grounding"), tasks=("vqa", "grounding"))
    axis = figure.axes[0]
    assert axis.get_title() == "vqa, test: VQA accuracy (%)\nhighest at 0.50 vqa + 0.25 caption + 0.25 grounding"
    ring = axis.get_lines()[-1]
    assert (*ring.get_xdata(), *ring.get_ydata()) == pytest.approx((0.25 + 0.125, 0.25 * np.sqrt(3) / 2))
    assert {text.get_text() for text in axis.texts} == {f"{name}\nexpert" for name in ("vqa", "caption", "grounding")}
    with pytest.raises(StudyError, match="2 points of vqa over a, b, vqa"):
        plots.ternary(
            [*simplex_rows()[-2:], row(task="vqa", value=1, shares={"a": 1})], ("a", "b", "vqa"), tasks=["vqa"]
        )


FIGURES = {
    "curves": lambda: plots.accuracy_curves(
        [*sweep(), *sweep(experts="ratatouille"), *single("joint", 0.8, 0.9)], PAIR, levels=["joint"]
    ),
    "batchnorm": lambda: plots.batchnorm_panels([*sweep(), *sweep(batchnorm="recalibrate:mixture")], PAIR),
    "plane": lambda: plots.tradeoff_plane(published("entailment", "grounding"), "entailment", "grounding"),
    "radar": lambda: plots.radar(*radar_rows()),
    "ood": lambda: plots.ood_scatter(ood_rows(), "vqa", ["novel", "printed"]),
    "ternary": lambda: plots.ternary(simplex_rows(), ("vqa", "caption", "grounding"), tasks=("vqa", "grounding")),
}


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_cut_off(name):
    figure = FIGURES[name]()
    figure.draw_without_rendering()
    inside = figure.get_tightbbox()
    assert min(inside.min) > -0.01
    assert (inside.max < figure.get_size_inches() + 0.01).all()


def test_equal_rows_give_equal_files(tmp_path):
    def figure():
        return plots.accuracy_curves(sweep(), PAIR, tasks=["vqa"])

    settings = dict(matplotlib.rcParams)
    written = plots.save(figure(), tmp_path / "one")
    assert dict(matplotlib.rcParams) == settings
    assert [path.name for path in written] == ["one.png", "one.svg", "one.pdf"]
    again = plots.save(figure(), tmp_path / "again")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in written]


def test_series_differ_without_colour():
    every = (*SERIES, *BESIDE, *OTHERS)
    assert len({(style.marker, str(style.dashes)) for style in every}) == len(every)
    assert len({style.marker for style in every}) == len(every)


def test_a_series_looks_the_same_in_every_figure_of_a_study():
    styles = study_styles(
        ["pretrained", "plain", "plain, ensemble", "fine"], ["plain", "fine"], ["pretrained", "whole"]
    )
    assert (styles["plain"], styles["fine"]) == SERIES[:2]
    assert (styles["pretrained"], styles["whole"]) == BESIDE
    assert styles["plain, ensemble"] == OTHERS[0]
    assert styles_of(["plain, ensemble", "fine"], styles) == {
        name: styles[name] for name in ("plain, ensemble", "fine")
    }
    assert list(styles_of(["a", "b", "pretrained"]).values()) == [*SERIES[:2], BESIDE[0]]


def test_errors_say_what_to_do():
    mixed = [*sweep(), row(task="vqa", value=0.5, shares={"vqa": 1.0}, split="val")]
    with pytest.raises(StudyError, match="rows of vqa mix split test, val: keep one of them"):
        plots.accuracy_curves(mixed, PAIR, by="experts")
    with pytest.raises(StudyError, match="no scores of audio"):
        plots.accuracy_curves(sweep(), PAIR, tasks=["audio"])
    with pytest.raises(StudyError, match="no rows between entailment and grounding"):
        plots.accuracy_curves(sweep(), ("entailment", "grounding"), tasks=["vqa"])
    holes = [line for line in sweep() if line["task"] == "vqa" or line["shares"]["vqa"] != 0.5]
    with pytest.raises(StudyError, match="interpolate: vqa and caption are not scored at the same shares"):
        plots.tradeoff_plane(holes, "vqa", "caption")
    rows, groups = radar_rows()
    with pytest.raises(StudyError, match="no score of vanilla on vqa ID"):
        plots.radar([line for line in rows if (line["experts"], line["task"]) != ("vanilla", "vqa")], groups)
