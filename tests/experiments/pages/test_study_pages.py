"""`study plot`, `study table` and the samples: from rows alone, and from a real model on a real world."""

import csv
import io
import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from experiments.commands import app, pages
from experiments.errors import StudyError
from experiments.pages.figures import FIGURES, draw
from experiments.pages.figures.growth import MERGED, OTHERS, OWN
from experiments.pages.figures.style import study_styles, styles_of
from experiments.pages.ranking import ranking_tables, rankings, told_apart
from experiments.pages.tables import study_tables
from experiments.pages.views import main_metrics, one_policy, open_study, pairs_of, shifted_splits, with_series
from experiments.statistics.weights import MergeCost
from experiments.unival.studies import STUDIES
from tests.experiments.study_rows import in_memory, kept, with_losses, write_study

SIMPLEX = "ternary_small_medium_large"
RECALIBRATED = ("average", "recalibrate:mixture")


def stems(rows):
    drawn, missing = draw(rows)
    return [one.stem for one in drawn], missing


@pytest.fixture(scope="module")
def pair():
    """Rows of one pair under two policies."""
    return in_memory("interpolation", only="vqa+caption", points=5, batchnorm=RECALIBRATED)[0]


def test_no_two_series_look_alike():
    """Neither kinds of experts, nor models beside them, nor the ensembles of some kinds."""
    kinds = ("vanilla", "longer", "soup", "ratatouille", "fusing", "fusing-with-own")
    series = [*kinds, "vanilla, ensemble", "ratatouille, ensemble", "fusing, ensemble"]
    styles = study_styles(series, kinds, ["pretrained", "joint"])
    assert styles.keys() == {*series, "pretrained", "joint"}
    assert len(set(styles.values())) == len(styles)
    assert len(set(styles_of(series).values())) == len(series)


def test_every_figure_of_a_pair(pair):
    names, missing = stems(pair)
    own = ["curves_vqa_caption", "plane_vqa_caption", "batchnorm_vqa_caption"]
    assert names == ["retention", *own, "ood_vqa", "ood_caption", "ood_grounding", "ood_entailment"]
    assert missing == []


def test_figures_show_one_policy_and_all_models(pair):
    drawn, _ = draw(pair)
    curves, plane, policies = (one.figure for one in drawn[1:4])
    labels = [text.get_text().split(",")[0] for text in curves.axes[0].get_legend().get_texts()]
    assert labels == ["vanilla", "vanilla", "ratatouille", "pretrained", "joint"]  # the second one is the ensemble
    assert len(plane.legends[0].get_texts()) == 6  # and the stars
    assert [axis.get_title() for axis in policies.axes[:2]] == [f"BatchNorm {name}" for name in RECALIBRATED]


@pytest.mark.parametrize("study", ["averaging", "ood", "rewarded-soups"])
def test_figures_of_the_other_studies(study):
    options = {"points": 3} if study == "rewarded-soups" else {}
    names, missing = stems(in_memory(study, **options)[0])
    shifted = [f"ood_{task}" for task in ("vqa", "caption", "grounding", "entailment")]
    pairs = ("small_medium", "small_large", "medium_large")
    planes = [f"{name}_{pair}" for pair in pairs for name in ("curves", "plane")]
    average = "dots_vqa+caption+grounding+entailment"
    expected = {"averaging": [average, *shifted], "ood": shifted, "rewarded-soups": [SIMPLEX, *planes]}
    assert (names, missing) == ((["retention"] if study != "ood" else []) + expected[study], [])


def test_figures_follow_from_the_rows_whatever_the_study_is_called(pair):
    own = [{**row, "study": "digits"} for row in pair if row["task"] in ("vqa", "caption") and row["split"] == "test"]
    turned = {"vqa": "upright", "caption": "turned"}
    for row in own:
        row["shares"] = {turned.get(name, name): share for name, share in row["shares"].items()}
        row["task"] = turned[row["task"]]
    names, missing = stems(own)
    assert (names, missing) == (
        ["retention", *(f"{name}_upright_turned" for name in ("curves", "plane", "batchnorm"))],
        [],
    )


def test_a_third_of_a_triangle_is_no_simplex():
    pairs = [in_memory("interpolation", only=only, points=5)[0] for only in ("vqa+caption", "caption+grounding")]
    names, _ = stems([row for rows in pairs for row in rows if row["split"] == "test"])
    assert not [name for name in names if name.startswith("ternary")]


@pytest.mark.parametrize("name", FIGURES)
def test_every_kind_of_figure_is_whole(name):
    """An entry says when it applies, what is drawn and how it is read, and the rows of some study have its shape."""
    kind = FIGURES[name]
    assert kind.caption.endswith("."), f"figure {name} does not say how it is to be read"
    studies = {"ternary": "rewarded-soups", "radar": "averaging", "dots": "averaging"}
    studies |= {
        "landscape": "plane",
        "count": "subsets",
        "along": "along",
        "angles": "mergeability",
        "ranking": "methods",
    }
    options = {"only": "vqa+caption", "batchnorm": RECALIBRATED} if name not in studies else {}
    rows = with_series(main_metrics(in_memory(studies.get(name, "interpolation"), **options)[0]))
    if name == "sweep":
        rows = [{**row, "parameters": {"t": t}} for t in (0.1, 0.2) for row in rows if row["method"] != "single"]
    if name == "angles":
        about = {"cosine": 0.1, "distance": 2.0, "agreement": 0.5}
        rows = [{**row, "geometry": about} if len(row["shares"]) > 1 else row for row in rows]
    if name == "along":
        rows = [{**row, "progress": STUDIES["along"].notes.progress.get(row["experts"], 0)} for row in rows]
    subjects = [subject for subject, _ in kind.figures(rows, {})]
    assert subjects, f"no rows of a study have the shape of figure {name}"
    title = kind.title.format(*subjects[0])
    assert all(word in title for word in subjects[0]), f"the title of figure {name} does not name its subject"
    singles = [row for row in rows if row["method"] == "single" and row["split"] == "test"]
    assert list(kind.figures(singles, {})) == [], f"figure {name} would be drawn of rows without its shape"


def test_a_plane_is_drawn_with_its_three_models_in_the_axes_of_gram_and_schmidt():
    rows, _ = in_memory("plane")
    (drawn,) = draw(with_losses(rows), only=["landscape"])[0]
    assert drawn.stem == "landscape_vqa_caption"
    panels = [axis for axis in drawn.figure.axes if axis.get_title()]
    assert [axis.get_title().replace("\n", " ") for axis in panels] == [
        "vqa, test: VQA accuracy (%)",
        "caption, test: CIDEr-D (× 100)",
        "vqa, test: negative log-likelihood (nats, lower is better)",
        "caption, test: negative log-likelihood (nats, lower is better)",
    ]
    marks = {line.get_label(): line.get_xydata().tolist() for line in panels[0].get_lines()}
    assert (marks["pretrained"], marks["the experts"]) == ([[0, 0]], [[1, 0], [0, 1]])
    lines = [one.stem for one in draw(rows, only=["retention", "curves", "dots", "sweep"])[0]]
    assert lines == ["retention", "curves_vqa_caption"]  # the points of a plane are in no other figure
    about = {"first": 2.0, "second": 5.0, "cosine": 0.6}
    (drawn,) = draw([{**row, "geometry": about} for row in rows], only=["landscape"])[0]
    marks = {line.get_label(): line.get_xydata() for line in drawn.figure.axes[0].get_lines()}
    assert marks["the experts"].tolist() == [pytest.approx([2, 0]), pytest.approx([3, 4])]
    assert marks["their average"].tolist() == [pytest.approx([2.5, 2])]


def test_averages_are_drawn_by_the_number_of_their_experts():
    rows, _ = in_memory("subsets")
    (drawn,) = [one for one in draw(with_losses(rows))[0] if one.stem == "count"]
    titles = [axis.get_title() for axis in drawn.figure.axes]
    assert [titles[0], titles[1], titles[5], titles[6]] == [
        "all tasks, test",
        "vqa, test",
        "all tasks, shifted data",
        "vqa, test",
    ]
    own, every = (line.get_ydata() for line in drawn.figure.axes[0].get_lines() if len(line.get_xdata()) == 4)
    scores = [kept(1 / size) for size in (1, 2, 3, 4)]
    assert own == pytest.approx([100 * score / scores[0] for score in scores], abs=0.3)
    assert every[3] == pytest.approx(own[3])


def test_experts_and_averages_are_drawn_over_their_progress(tmp_path):
    gained = {f"along-{part}": part / 100 - 1 for part in range(10, 100, 10)}
    folder = write_study(tmp_path, "along", kind={**gained, "vanilla": 0.0, "pretrained": 0.0}, start=0.1)
    (drawn,) = draw(*open_study(folder, "along"), only=["along"])[0]
    lines = [line for line in drawn.figure.axes[1].get_lines() if len(line.get_xdata()) == 11]
    assert lines[0].get_xdata().tolist() == pytest.approx([*range(0, 101, 10)])
    assert lines[0].get_ydata()[[0, 5, 10]] == pytest.approx([10, 35, 85], abs=0.3)
    assert [text.get_text() for text in drawn.figure.legends[0].get_texts()] == [OWN, MERGED, OTHERS]


def test_methods_are_ranked_by_what_they_keep_at_the_values_chosen_on_val(tmp_path):
    rows, scores = in_memory("methods", tasks=("vqa", "caption"))
    better = {"ties": {"density": 0.5, "scale": 1.0}, "sce": {"density": 0.3}}
    for row in rows:
        if better.get(row["method"]) == row["parameters"]:
            for name in ("value", "lo", "hi"):
                row[name] += 0.1 if row["method"] == "ties" else 0.05
            scores.pop(row["key"])
    cost = MergeCost("vanilla", "vqa+caption+grounding+entailment", "sce", '{"density": 0.3}', 1.5, 24.0, 5.0, "9")
    table = ranking_tables(rows, scores, [cost])["methods"].to_markdown()
    lines = [line.split(" | ")[:3] for line in table.splitlines()[2:]]
    assert lines[0][:2] == ["| ties", "density 0.5, scale 1"]
    assert lines[1][:2] == ["| sce", "density 0.3"]
    assert "| 1.50 | 24 | 9 |" in table
    first = rankings(rows, scores)["vqa+caption+grounding+entailment", "vanilla"][0]
    assert first.reported[0] == pytest.approx((kept(0.25) + 0.1) / kept(1), abs=0.01)
    (drawn,) = draw(rows, scores, only=["ranking"])[0]
    assert drawn.figure.axes[0].get_yticklabels()[0].get_text() == "ties, density 0.5, scale 1"


def test_methods_are_held_against_the_plain_average_at_the_same_seeds():
    """One is a tenth better at every seed, one is the same, and one is better at some seeds only."""
    lifts = {"wudi": (0.1, 0.09, 0.11, 0.1, 0.1), "karcher": (0.2, -0.1, 0.0, 0.1, 0.0)}
    rows, scores = in_memory("methods", tasks=("vqa",), seeds=range(5))
    for row in rows:
        lift = lifts.get(row["method"], (0.0,) * 5)[row["seed"]]
        row.update({name: row[name] + lift for name in ("value", "lo", "hi")})
    (standings,) = rankings(rows, scores).values()
    by_method = {one.series.method: one for one in standings}
    clear = dict(zip(by_method, told_apart(standings), strict=True))
    assert by_method["average"].over is None
    assert by_method["wudi"].over.value == pytest.approx(0.1 / kept(1), abs=0.01)
    assert clear["wudi"]
    assert not clear["karcher"]
    assert (by_method["multislerp"].over.value, clear["multislerp"]) == (pytest.approx(0, abs=1e-9), False)
    line = next(line for line in ranking_tables(rows, scores)["methods"].lines if line[0] == "wudi")
    assert re.match(r"\+\d+\.\d\* \[", line[3])


def test_radar_has_charts_that_can_be_read():
    rows = in_memory("averaging")[0]
    assert "radar" not in stems(rows)[0]
    (figure,) = [one.figure for one in draw(rows, also=["radar"])[0] if one.stem == "radar"]
    titles = [axis.get_title().partition(": %")[0] for axis in figure.axes if axis.name == "polar"]
    inside, outside = "in distribution", "out of distribution: "
    assert titles == [inside, f"{outside}novel", f"{outside}lowquality", f"{outside}printed, knowledge"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "pretrained",
        "vanilla",
        "longer",
        "soup",
        "ratatouille",
        "fusing",
        "fusing-with-own",
    ]


def test_what_lacks_rows_is_named_and_the_rest_drawn(pair):
    rows = [row for row in pair if (row["task"], row["point"]) != ("vqa", "1.00 vqa")]
    drawn, missing = draw(rows)
    assert "curves_vqa_caption" in [one.stem for one in drawn]
    assert missing == [
        "plane_vqa_caption: vanilla: caption and vqa are not scored at the same shares: evaluate the missing cells"
    ]


def test_rows_seen_side_by_side(pair):
    rows = main_metrics(pair)
    assert pairs_of(rows) == [("vqa", "caption")]
    assert shifted_splits(rows, "vqa") == ["novel", "lowquality", "printed", "knowledge"]
    one = one_policy(rows, "recalibrate:mixture")
    assert {row["batchnorm"] for row in one if row["method"] == "interpolate"} == {"recalibrate:mixture"}
    assert "ensemble" in {row["method"] for row in one}
    assert {row["point"] for row in one if len(row["shares"]) == 1} == {
        "1.00 pretrained",
        "1.00 joint",
        "1.00 vqa",
        "1.00 caption",
    }


def test_rewards_become_tasks_of_their_own():
    rows = main_metrics(in_memory("rewarded-soups", points=3)[0])
    assert {(row["task"], row["metric"]) for row in rows} == {
        (task, "Acc@0.5") for task in ("grounding", "small", "medium", "large")
    }


def test_a_table_a_pair():
    sides = [in_memory("interpolation", only=only, points=3)[0] for only in ("vqa+caption", "caption+grounding")]
    tables = study_tables([*sides[0], *sides[1]], {})
    assert list(tables) == ["vqa → caption", "caption → grounding"]
    points = {label[-1] for label in tables["caption → grounding"].rows}
    assert points == {
        "1.00 pretrained",
        "1.00 joint",
        "1.00 caption",
        "0.50 caption + 0.50 grounding",
        "1.00 grounding",
    }


def test_what_helps_show_runs_and_needs_nothing_but_the_rows_file(tmp_path, monkeypatch):
    choice = {"split": "val", "kinds": ("vanilla",), "tasks": ["vqa"]}  # two figures
    written = write_study(tmp_path / "made", "interpolation", only="vqa+caption", points=3, **choice)
    write_study(written, "averaging", **choice)
    for name in ("interpolation", "averaging"):
        (tmp_path / "results" / f"pocket-{name}").mkdir(parents=True)
        shutil.copy(written / "rows.jsonl", tmp_path / "results" / f"pocket-{name}")
    monkeypatch.chdir(tmp_path)
    shown = {}
    for function in (pages.plot, pages.table, pages.report):
        example = function.__doc__.split("\b\n")[1].strip().splitlines()[0]
        run = CliRunner().invoke(app, shlex.split(example)[1:])
        assert run.exit_code == 0, f"{example}: {run.output}"
        shown[function.__name__] = run.output
    written = {file.name for file in Path("figures").iterdir()}
    assert written == {f"{name}.{end}" for name in ("curves_vqa_caption", "retention") for end in ("png", "pdf")}
    assert r"\begin{tabular}" in shown["table"]
    assert Path(shown["report"].strip()).is_file()
    table = ["study", "table", "interpolation", "made", "--format"]
    markdown = CliRunner().invoke(app, [*table, "markdown"]).output
    assert markdown.startswith(
        "## vqa → caption\n\n| experts | method | batchnorm | point | vqa val, VQA accuracy (%, n"
    )
    assert CliRunner().invoke(app, [*table, "latex"]).output.startswith("% vqa → caption\n")
    lines = list(csv.reader(io.StringIO(CliRunner().invoke(app, [*table, "csv"]).output)))
    assert lines[0][:5] == ["experts", "method", "batchnorm", "point", "vqa val VQA accuracy value"]
    assert lines[1][:5] == ["pretrained", "single", "average", "1.00 pretrained", "0.55"]


def test_errors_say_what_there_is(tmp_path):
    write_study(tmp_path, "rewarded-soups", points=2)
    with pytest.raises(StudyError, match="holds rows of rewarded-soups, none of averaging: run the study first"):
        open_study(tmp_path, "averaging")
    assert draw([]) == ([], [])
