"""What is published of a study says what its folder says, and can be gone on with."""

import gzip
from pathlib import Path

import numpy as np
import pytest

import experiments
from experiments import StudyError
from experiments.grid.rows import read_rows, read_scores
from experiments.results.export import _short, export
from tests.experiments.made_study import score_both, study


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ran")
    experiments.run(study(tasks={"up": score_both, "down": score_both}), folder, progress=False)
    return folder


def test_a_packed_study_reads_like_the_whole_one(ran: Path, tmp_path: Path) -> None:
    out = export(ran, study().name, tmp_path / "out")
    rows, there = read_rows(out / "rows.jsonl"), read_rows(ran / "rows.jsonl")
    assert rows.to_dict("records") == there.to_dict("records")
    own, everything = read_scores(out / "rows.jsonl"), read_scores(ran / "rows.jsonl")
    quoted = set(rows[(rows["metric"] == rows["metric"].iloc[0]) & (rows["split"] != "val")]["key"])
    assert quoted == set(own) < set(everything)
    assert all(own[key] == pytest.approx(everything[key], rel=1 / 8000) for key in own)
    assert set(read_scores(export(ran, study().name, tmp_path / "all", "all") / "rows.jsonl")) == set(everything)
    assert not list(export(ran, study().name, tmp_path / "none", "none").glob("rows.scores*"))
    again = export(ran, study().name, tmp_path / "again") / "rows.jsonl.gz"
    assert again.read_bytes() == (out / "rows.jsonl.gz").read_bytes()


def test_scores_are_rounded_where_nobody_looks() -> None:
    values = np.array([0.0, 1.0, -1.0, 0.5, 3.141592, -2e-30, 7e30, np.nan, np.inf])
    short = _short(values)
    assert short == pytest.approx(values, rel=1 / 8000, nan_ok=True)
    assert (short[:4] == values[:4]).all()
    assert np.array_equal(short.astype("float32"), short, equal_nan=True)


def test_a_packed_study_is_gone_on_with(ran: Path, tmp_path: Path) -> None:
    export(ran, study().name, tmp_path)
    given = study(tasks={"up": score_both, "down": score_both})
    experiments.run(given, tmp_path, progress=False)
    assert not (tmp_path / "rows.jsonl").exists()
    experiments.run(given, tmp_path, points=9, progress=False)
    keys, new = set(read_rows(ran / "rows.jsonl")["key"]), (tmp_path / "rows.jsonl").read_text()
    assert new
    assert not any(key in new for key in keys)
    assert keys < set(read_rows(tmp_path / "rows.jsonl")["key"])
    with pytest.raises(StudyError, match="holds rows of its own: name another folder"):
        export(ran, study().name, tmp_path)


def test_what_cannot_be_published_is_said(ran: Path, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="holds no rows of other"):
        export(ran, "other", tmp_path)
    with pytest.raises(StudyError, match="scores of 'some': choose one of quoted, all, none"):
        export(ran, study().name, tmp_path, "some")
    assert not list(tmp_path.iterdir())
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(b"{}\n")[:-4])
    with pytest.raises(StudyError, match=r"rows\.jsonl\.gz cannot be read"):
        read_rows(tmp_path / "rows.jsonl")
