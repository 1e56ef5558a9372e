"""The paper's claims beside rows: each has a measure that made rows fill, and verdicts follow one rule."""

import numpy as np
import pytest

from experiments.errors import StudyError
from experiments.grid.units import SHARES
from experiments.statistics.contrasts import Contrast
from experiments.unival.paper.claims import CLAIMS
from experiments.unival.paper.evidence import Evidence, Told, evidence_in
from experiments.unival.paper.page import NOT_RUN, verdicts, write_page
from experiments.unival.studies import STUDIES
from tests.experiments.study_rows import in_memory, write_study

COSTS = """training,seed,start,updates,measured,examples,cpu_seconds,start_mb,peak_mb
image,0,backbone,400,400,25600,60,1,600
image-then-video,0,image,100,100,6400,20,1,750
video-from-start,0,backbone,500,250,32000,50,1,1000
"""


@pytest.mark.parametrize("study", dict.fromkeys(claim.studies[0] for claim in CLAIMS))
def test_every_claim_finds_its_rows(study, tmp_path):
    """In rows without scores of examples, on lines of three points."""
    (tmp_path / "costs.csv").write_text(COSTS)
    evidence = Evidence(tmp_path, study)
    vars(evidence)["_read"] = in_memory(study, points=None if study == "rewarded-soups" else 3)[0], {}
    own = [claim for claim in CLAIMS if study in claim.studies[:1]]
    told = [claim.measure(evidence) for claim in own]
    assert all(set(claim.studies) <= set(STUDIES) for claim in own)
    assert None not in told
    assert all("not run" not in one.note for one in told)
    assert all("; 1 seed, no interval" in one.text for one in told)
    if study == "interpolation":  # `kept` lies .525 at the middle, .25 and .85 at the ends: .225 above the line
        by_words = {claim.says: one.contrast.value for claim, one in zip(own, told, strict=True)}
        above = [value for says, value in by_words.items() if "above the straight line" in says]
        assert above == pytest.approx([(0.775 - 0.55) / 0.85] * 5)
    if study == "pretraining":
        assert [one.contrast.value for one in told[:2]] == pytest.approx([0.2, 0.25])


def told(values, p, margin=0.0):
    return Told(Contrast(float(np.mean(values)), -0.1, 0.3, p, values), SHARES, margin=margin)


def test_verdicts_follow_the_corrected_tests():
    made = [
        told((0.1, 0.2), 0.001), told((-0.1, -0.2), 0.001), told((0.1, 0.1), 0.03), told((-0.1, 0.0), 0.4),
        told((0.1,), 0.0001), None,
    ]  # fmt: skip
    assert verdicts(made) == ["shown", "contrary", "shown in the mean", "not shown", "shown in the mean", NOT_RUN]
    assert verdicts(made[2:3]) == ["shown"]  # alone it needs no correction
    assert told((0.05, 0.05), 0.1, margin=0.02).text == "+3.0 [-12.0, +28.0] points; 2 seeds"


def test_the_page_links_rows_and_says_what_was_not_run(tmp_path):
    choice = {"kinds": ("vanilla", "ratatouille"), "tasks": ("vqa",)}
    write_study(tmp_path / "four", "averaging", seeds=(0, 1), **choice)
    write_study(tmp_path / "less", "averaging", seeds=(0,), **choice)
    assert evidence_in(tmp_path)["averaging"].folder.name == "four"
    (tmp_path / "less" / "README.md").write_text("# One seed\n\nof two\n")
    text = write_page(tmp_path, tmp_path / "README.md").read_text()
    assert "- [four](four/README.md): four. Is one average of all experts better" in text
    assert "- [less](less/README.md): One seed.\n" in text
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    assert len(lines) == len(CLAIMS)
    found = {line[1]: line for line in lines}
    line = found["The average of ratatouille experts is the best one on shifted data"]
    assert "not run: fusing" in line[3]
    assert line[5] == "[rows](four/rows.jsonl), [commands](four/README.md) |"
    missing = found["It takes less memory"]
    assert missing[3:] == ["", NOT_RUN, "`unival-merge study run pretraining DIR --train` |"]
    assert found["They are better than fusing ones there"][4] == NOT_RUN
    assert "The average of all vanilla experts, in distribution, is behind the tasks' own experts (" in text
    with pytest.raises(StudyError, match=r"has no folder with rows\.jsonl"):
        write_page(tmp_path / "four", tmp_path / "README.md")
