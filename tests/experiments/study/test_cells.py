"""From a study to its cells: which points a mixture has by each method, and what they are asked."""

import pytest

from experiments.errors import StudyError
from experiments.study.cells import cells_of
from experiments.study.methods import sweep_in, sweeps_of
from tests.experiments import made_study


def three(**changes):
    tasks = dict.fromkeys("abc", made_study.score_up)
    given = {"experts": {name: f"{name}.pt" for name in "abc"}, "tasks": tasks, "splits": "test", "points": 5}
    return made_study.study(**{**given, **changes})


def labels(study, **chosen):
    found = {cell.point.id: cell.point.label for cell in cells_of(study, **chosen)}
    return [label.replace(" (expert, ", " ").rstrip(")") for label in found.values()]


def test_three_experts_have_one_point_of_equal_shares_or_the_simplex():
    study = three(mixtures=("a+b+c",))
    assert labels(study)[3:] == ["0.3333 a + 0.3333 b + 0.3333 c average"]
    simplex = three(mixtures=("a+b+c",), simplex=True)
    assert labels(simplex, points=3)[3:] == [
        "0.50 a + 0.50 b average",
        "0.50 a + 0.50 c average",
        "0.50 b + 0.50 c average",
    ]
    assert len(labels(simplex)) == 15
    assert len(labels(three(simplex=True, mixtures=["a+b", "a+b+c"], methods="slerp"))) == 3 + 3  # of two experts


def test_points_of_one_policy_follow_each_other():
    """As what lies between two experts under a policy is opened once."""
    found = labels(three(mixtures=["a+b"], batchnorm=("average", "from:b")))
    assert [label.partition(", BatchNorm ")[2] for label in found[2:]] == [""] * 3 + ["from:b"] * 3


def test_the_inside_of_a_simplex_is_asked_its_experts_tasks_alone():
    tasks = dict.fromkeys(("a", "b", "c", "other"), made_study.score_up)
    asked = {}
    for cell in cells_of(three(tasks=tasks, mixtures=("a+b+c",), simplex=True, points=4)):
        asked.setdefault(tuple(cell.point.held), set()).add(cell.task)
    assert asked["a", "b"] == {"a", "b", "c"}
    assert asked["a", "b", "c"] == asked[("a",)] == {"a", "b", "c", "other"}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("ties", "ties"),
        ("ties:density=0.1", ("ties", {"density": [0.1]})),
        ("dare-ties:density=0.1,0.3:seed=7", ("dare-ties", {"density": [0.1, 0.3], "seed": [7]})),
        ("x:normalize=true:mode=sum", ("x", {"normalize": [True], "mode": ["sum"]})),
    ],
)
def test_methods_are_written_in_a_word(text, wanted):
    assert sweep_in(text) == wanted


def test_words_that_are_no_method_are_told():
    with pytest.raises(StudyError, match="write a parameter as ties:density=VALUE,VALUE"):
        sweep_in("ties:density")
    with pytest.raises(StudyError, match="study own: no method 'tie'"):
        sweeps_of("tie", "own", has_base=True)
    with pytest.raises(StudyError, match="study own: ties starts from a base: give pretrained="):
        sweeps_of(["ties"], "own", has_base=False)
