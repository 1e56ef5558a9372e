"""Findings say what the rows say, also when it is not what one hopes for, in words without units mixed."""

import pytest

from experiments.pages.findings import each_finding, findings
from experiments.pages.overview import lines_of, to_html
from tests.experiments.study_rows import KIND, in_memory, straight

PAIR = {"only": "vqa+caption", "points": 3}
KINDS = ("vanilla", "ratatouille")
LINE = {"only": "vqa+caption", "kinds": ("vanilla",), "points": 5}


def made(study, **options):
    """The findings of a study of made rows, by their first words."""
    contender = options.pop("contender", "")
    return each_finding(*in_memory(study, **options), contender)


def starting(found, words):
    return next((one for one in found if one.text.startswith(words)), None)


def test_experts_in_tension_with_their_numbers():
    one = starting(made("interpolation", **PAIR), "2 of 2 experts")
    assert one.text == (
        "2 of 2 experts beat the pretrained model on their own task; on the tasks of others they are worse than it in "
        "all 6 comparisons."
    )
    assert any(line.startswith("caption on its own caption: +30.0 [+25.5, +34.") for line in one.details)
    assert one.open == ""


def test_experts_that_forget_nothing():
    one = starting(made("interpolation", curve=lambda share: 0.55 + 0.3 * share, **PAIR), "2 of 2 experts")
    assert one.text.endswith("they are not told apart from it in any of 6 comparisons.")
    assert one.open == "6 of 8 experts' scores from the pretrained model's"


def test_an_expert_that_learnt_nothing_is_not_said_to_win():
    found = made("interpolation", curve=lambda share: 0.552 - 0.3 * (share == 0), **PAIR)
    assert starting(found, "0 of 2 experts beat the pretrained model on their own task; ") is not None


def test_without_scores_of_examples_and_one_seed_nothing_is_claimed():
    rows, _ = in_memory("interpolation", **PAIR)
    one = starting(each_finding(rows, {}), "0 of 2 experts")
    assert one.open == "8 of 8 experts' scores from the pretrained model's"
    assert "vqa on its own vqa: +30.0 points" in one.details


def test_without_a_pretrained_model_experts_are_compared_with_each_other():
    rows, scores = in_memory("interpolation", **PAIR)
    known = [row for row in rows if row["experts"] == "vanilla"]
    one = starting(each_finding(known, scores), "On its own task")
    assert one.text == "On its own task an expert is better than another expert in all 2 comparisons."
    assert any(line.startswith("vqa: +60.0 [") and line.endswith("better than caption") for line in one.details)


def test_merged_models_above_the_straight_line():
    found = made("interpolation", **LINE)
    one = starting(found, "Merged models")
    assert one.text == "Merged models keep more of all skills than the straight line between the two experts."
    # at equal shares 25 + 60 * 7/8 = 77.5 of 85 on both, and the line gives 55: 22.5 / 85 above
    assert one.details[0].startswith("vqa + caption (0.50 vqa + 0.50 caption, vanilla): +26.5 [")
    kept = starting(found, "The merged model keeps 91 % of its own experts' scores, and ")
    assert kept.details[0].startswith("vqa + caption (0.50 vqa + 0.50 caption, vanilla) keeps 91 [")


@pytest.mark.parametrize(
    ("curve", "words", "unclear"),
    [
        (straight, "cannot be told apart from the straight line between the two experts.", "1 of 1 merged models from"),
        (lambda share: 0.25 + 0.6 * share**3, "are worse than the straight line between the two experts.", ""),
    ],
)
def test_a_line_that_does_not_bulge_is_not_said_to(curve, words, unclear):
    one = starting(made("interpolation", curve=curve, **LINE), "Merged models")
    assert one.text.startswith(f"Merged models {words}")
    assert one.open.startswith(unclear)


def test_the_point_is_chosen_on_val_where_there_is_one():
    def peak(at):
        return lambda share: straight(share) + 0.2 * (abs(share - at) < 0.01)

    rows, scores = in_memory("interpolation", curve=peak(0.5), **LINE)
    val, more = in_memory("interpolation", curve=lambda s: straight(s) + 0.3 * (s == 0.75), split="val", **LINE)
    text = "\n".join(findings([*rows, *val], scores | more))
    assert "0.75 vqa + 0.25 caption, vanilla) keeps 82 [" in text
    assert "0.50 vqa" not in text


def test_val_that_was_stopped_half_way_chooses_nothing():
    """Neither where points are missing, nor where some have other seeds: the best is corrected for being that."""
    rows, scores = in_memory("interpolation", curve=lambda share: 0.2 + 0.6 * share + 0.3 * (share == 0.75), **LINE)
    val, more = in_memory("interpolation", split="val", **LINE)
    inner = {row["point"] for row in val if len(row["shares"]) > 1}
    half = [row for row in val if row["point"] not in sorted(inner)[1:]]
    seeds = [{**row, "seed": 1, "key": f"{row['key']}-1"} for row in half]
    for known, how in ((val, "point chosen on val"), (half, "best point"), ([*val, *seeds], "best point")):
        (text,) = [one.text for one in each_finding([*rows, *known], scores | more) if how in one.text][:1]
        assert text


def test_no_line_without_both_ends():
    rows, scores = in_memory("interpolation", **LINE)
    found = each_finding([row for row in rows if row["point"] != "1.00 vqa"], scores)
    assert starting(found, "Merged models") is None


def test_averages_that_win():
    options = {"curve": lambda share: 0.25 + 1.4 * share, "start": 0.5}
    found = made("averaging", contender="ratatouille", kinds=KINDS, **options)
    one = starting(found, "Averages of all experts")
    assert one.text.startswith("Averages of all experts are better than the pretrained model in all 8 comparisons; on ")
    assert "scores are higher in the mean" in one.text
    kinds = starting(found, "Averages of kinds of experts, by mean retention: in distribution that of ratatouille")
    assert "on shifted data that of ratatouille experts is better than that of vanilla" in kinds.text
    assert any(line.startswith("vanilla, vqa, test: +10.0 [") for line in one.details)
    assert one.open == ""


def test_averages_that_lose_and_a_ratatouille_that_is_no_better():
    kind = KIND | {"ratatouille": -0.03}
    found = made("averaging", kind=kind, kinds=KINDS, curve=lambda share: 0.25 + 1.0 * share, contender="ratatouille")
    one = starting(found, "Averages of all experts are worse than the pretrained model in all 8 comparisons; ")
    assert "0 of 34 scores are higher in the mean" in one.text
    kinds = starting(found, "Averages of kinds")
    assert kinds.text.count("that of ratatouille experts is worse than that of vanilla") == 2
    assert "ratatouille - vanilla, in distribution: -3.0 [" in "\n".join(kinds.details)


def test_of_many_kinds_only_those_told_apart_are_named():
    kinds = ("vanilla", "longer", "soup", "ratatouille")
    kind = dict.fromkeys(kinds, 0.0) | {"ratatouille": 0.05}
    found = made("averaging", kind=kind, kinds=kinds, curve=lambda share: 0.25 + 1.0 * share, contender="ratatouille")
    text = starting(found, "Averages of kinds").text
    assert "that of ratatouille experts is better than that of vanilla" in text
    assert text.count("none of the other 3 pairs of kinds is told apart") == 2
    assert "soup experts" not in text


def test_averages_of_all_experts_are_those_of_most():
    """Whatever averages of some of them stand beside it."""
    rows, scores = in_memory("subsets")
    some = [row for row in rows if len(row["shares"]) == 3]
    assert len(some) > 0
    whole = each_finding([row for row in rows if row not in some], scores)
    found = each_finding(rows, scores)
    start = "Averages of all experts"
    assert starting(found, start).details == starting(whole, start).details
    assert all(row["experts"] == "vanilla" for row in some)


def test_scores_of_different_units_are_not_averaged():
    """A caption metric that is a hundred times larger changes no count and no retention."""

    def sentences(factor):
        rows, scores = in_memory("averaging", curve=lambda share: 0.25 + 1.2 * share, kinds=("vanilla",))
        for row in rows:
            if row["task"] == "caption":
                row.update({name: factor * row[name] for name in ("value", "lo", "hi")}, unit="score")
                scores[row["key"]] = factor * scores[row["key"]]
        return [one.text for one in each_finding(rows, scores)]

    assert sentences(100) == sentences(1)


def test_findings_are_those_that_rows_tell_of():
    found = findings(*in_memory("rewarded-soups", points=3))
    assert [" ".join(text.split(" ")[:2]) for text in found] == [
        "No point", "The 3", "Merged models", "6 of", "On its", "A barrier",
    ]  # fmt: skip
    assert findings([]) == []


def test_where_retention_cannot_be_reckoned_the_page_does_not_blame_val():
    options = {"only": "vqa+caption", "kinds": ("vanilla",), "points": 5}
    (rows, scores), (val, more) = (in_memory("interpolation", split=split, **options) for split in ("test", "val"))
    known = [row for row in [*rows, *val] if row["experts"] == "vanilla"]
    for row in known:
        row["value"] -= row["task"] == "caption"
    text = to_html(lines_of(known, scores | more, {}))
    assert "retention cannot be reckoned" in text
    assert "were not evaluated on val" not in text
