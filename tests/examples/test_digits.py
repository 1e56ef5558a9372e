"""The example on digits: from its file, as the command line takes it, with fewer points."""

import shutil

import pytest

import experiments
from experiments.results.files import load_study
from tests import ROOT


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The study of a copy of the file, so that its experts lie elsewhere."""
    pytest.importorskip("sklearn")
    return load_study(str(shutil.copy(ROOT / "examples" / "digits.py", tmp_path_factory.mktemp("digits"))))


def test_experts_are_good_at_their_own_and_policies_differ_between_them(study, tmp_path):
    results = experiments.run(study, tmp_path, points=3, only="turned+upright", split=("val", "test"), progress=False)
    assert results.ran.failed == 0
    test = results.rows[results.rows["split"] == "test"]
    found = {(row["point"], row["batchnorm"], row["task"]): row["value"] for row in test.to_dict("records")}
    for own, other in (("upright", "turned"), ("turned", "upright")):
        assert found[f"1.00 {own}", "average", own] > 0.9
        assert found[f"1.00 {own}", "average", other] < 0.5
    middle = [found["0.50 upright + 0.50 turned", policy, "turned"] for policy in study.batchnorm]
    assert middle[0] < middle[1]
    assert len(set(middle)) == 3
    again = experiments.run(study, tmp_path, points=3, only="turned+upright", progress=False)
    assert again.ran.known == len(results.rows)
    assert set(again.rows["split"]) == {"val", "test", "noisy"}
    assert again.best("upright+turned").shares
