"""The grid on two made experts: every cell once, resumable in any way, and the scores of the weights it says."""

import math
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

import merge
from experiments.errors import StudyError
from experiments.grid.engines.local import evaluate
from experiments.grid.grid import Grid, groups, run_cells
from experiments.grid.notes import Notes, read_notes
from experiments.grid.rows import read_rows, read_scores
from experiments.grid.worker import Worker
from experiments.pages.report import write_report
from experiments.pages.tables import FORMATS, written
from experiments.pages.views import open_study
from experiments.searches.cells import Mixture
from experiments.searches.driver import search
from experiments.statistics.selection import best_points
from experiments.study.points import Expert, single
from experiments.unival.setups import PocketSetup
from experiments.unival.studies import Choice
from experiments.unival.subject import UnivalSubject, mixed
from tests import ROOT
from tests.experiments.made_pocket import TINY as LINE
from tests.experiments.made_pocket import copied, moved, write
from unival_core.checkpoint import load_model
from unival_core.config import CONFIGS
from unival_core.evaluation import evaluate as evaluate_model
from unival_core.model import UnivalModel

TINY = replace(LINE, ensembles=("vanilla",))
TASKS = TINY.experts
VQA, ENTAILMENT = (Expert(task, task, "vanilla") for task in TASKS)


@pytest.fixture(scope="module")
def full(home, tmp_path_factory):
    """A finished run, in a folder of its own."""
    folder = tmp_path_factory.mktemp("full")
    return folder, run(home, folder)


def plan(home, *, study=TINY, seeds=(0,), limit=2, **choice):
    return Grid(study.name, UnivalSubject(PocketSetup(home), limit), seeds), study.cells(Choice(**choice))


def jobs_of(home, **options):
    grid, cells = plan(home, **options)
    return grid.jobs(cells)


def run(home, folder, **options):
    return run_cells(*plan(home, **options), folder, evaluate, progress=False)


def rows_in(folder):
    return read_rows(folder / "rows.jsonl")


def told(rows):
    """Rows without what may differ from run to run, in an order of their own."""
    return rows.drop(columns=["seconds"]).sort_values("key").reset_index(drop=True)


# -- cells


def test_every_cell_has_a_row(full):
    folder, summary = full
    rows = rows_in(folder)
    assert (summary.evaluated, summary.copied, summary.known) == (10, 0, 0)
    assert len(rows) == 10 * 3
    columns = {"VQA accuracy", "accuracy"}, {"negative log-likelihood"}, {"confidence"}
    assert [set(rows["metric"][first::3]) for first in range(3)] == [*columns]  # what is quoted comes first
    assert list(rows["unit"][:3]) == ["share", "nats", "share"]
    points = ["1.00 pretrained", "1.00 vqa", "1.00 entailment", "0.50 vqa + 0.50 entailment"]
    assert list(dict.fromkeys(rows["point"])) == points
    assert set(rows["method"]) == {"single", "interpolate", "ensemble"}
    assert set(rows["n"]) == {2}
    assert set(rows["inputs"][0]) == {"pretrained"}
    assert "switching" in str(summary)


def test_a_second_run_does_nothing(home, full):
    folder, _ = full
    before = (folder / "rows.jsonl").read_bytes()
    summary = run(home, folder)
    assert (summary.evaluated, summary.copied, summary.known) == (0, 0, 10)
    assert (folder / "rows.jsonl").read_bytes() == before
    assert str(summary) == "0 cells evaluated, 0 taken from other studies, 10 there already"


def test_what_guessing_scores_is_reckoned_of_new_cells_alone(home, tmp_path):
    """On splits that have cells to evaluate, and those of which nothing is noted."""
    asked = []

    def chance(cells):
        asked.append([cell.task for cell in cells])
        return {cell.task: {cell.split: 0.5} for cell in cells}

    grid, cells = plan(home)
    own = [cell for cell in cells if cell.split == cells[0].split and cell.point.id == cells[0].point.id][:1]
    grid.chance, grid.notes = chance, Notes()
    for _ in range(2):
        run_cells(grid, own, tmp_path, evaluate, progress=False)
    assert asked == [[own[0].task], []]
    assert read_notes(tmp_path, TINY.name).chance == {own[0].task: {own[0].split: 0.5}}


def test_a_merged_row_has_the_scores_of_the_merged_checkpoint(home, full):
    subject, rows = UnivalSubject(PocketSetup(home)), rows_in(full[0])
    files = [subject.source(expert, 0).path for expert in (VQA, ENTAILMENT)]
    model = load_model(files[0])
    model.load_state_dict(merge.interpolate(*map(merge.load_checkpoint, files), 0.5))
    data = subject.dataset("vqa", "test", model.config)
    result = evaluate_model(model, data, options=subject.setup.generation("vqa"), limit=2, progress=False)
    row = rows[(rows["method"] == "interpolate") & (rows["task"] == "vqa")].iloc[0]
    scores = read_scores(full[0] / "rows.jsonl", [row["key"]])[row["key"]]
    np.testing.assert_allclose(scores, result.scores["VQA accuracy"].per_example, rtol=1e-6)
    assert row["value"] == result.scores["VQA accuracy"].value


def test_seeds_have_their_own_experts(home, tmp_path):
    summary = run(home, tmp_path, seeds=(0, 1))
    rows = rows_in(tmp_path)
    assert summary.evaluated == 20 - 2  # the pretrained model is one for both
    assert rows[rows["seed"] == 1]["point"].tolist().count("1.00 vqa") == 2 * 3


def test_limits_are_other_rows(home, full, tmp_path):
    keys = {key for job in jobs_of(home, limit=3) for key in job.keys.values()}
    assert not keys & set(rows_in(full[0])["key"])


def test_another_studys_cells_are_copied(home, full, tmp_path):
    folder = copied(full[0], tmp_path / "copy")
    summary = run(home, folder, study=replace(TINY, name="twin"))
    assert (summary.evaluated, summary.copied) == (0, 10)
    rows = rows_in(folder)
    tiny, twin = (rows[rows["study"] == name] for name in ("tiny", "twin"))
    assert twin["value"].tolist() == tiny["value"].tolist()
    scores = read_scores(folder / "rows.jsonl")
    for old, new in zip(tiny["key"], twin["key"], strict=True):
        np.testing.assert_array_equal(scores[old], scores[new])


def test_a_changed_expert_redoes_its_own_rows(home, tmp_path):
    own = copied(home, tmp_path / "home")
    run(own, tmp_path)
    before = set(rows_in(tmp_path)["key"])
    write(own, 0, ENTAILMENT, moved(load_model(PocketSetup(own).source(ENTAILMENT, 0).path), 7))
    summary = run(own, tmp_path)
    rows = rows_in(tmp_path)
    new = rows[~rows["key"].isin(before)]
    assert summary.evaluated == len(new) / 3 == 6
    assert all("entailment" in shares for shares in new["shares"])


def test_changed_data_redo_their_own_rows(home, full, tmp_path):
    own = copied(home, tmp_path / "home")
    record = own / "world" / "world.json"
    text = record.read_text()
    digest = text.split('"vqa/test"')[1].split('"sha256": "')[1][:64]
    record.write_text(text.replace(digest, "0" * 64))
    known = set(rows_in(full[0])["key"])
    redone = [job for job in jobs_of(own) if not set(job.keys.values()) <= known]
    assert [(job.cell.task, job.cell.split) for job in redone] == [("vqa", "test")] * 5


def test_missing_experts_are_named(home, tmp_path):
    study = replace(TINY, kinds=("vanilla", "fusing"))
    with pytest.raises(StudyError, match=r"study tiny lacks \S+fusing\S+ \(fusing/vqa of seed 0: .* and 1 more files"):
        jobs_of(home, study=study)
    with pytest.raises(StudyError, match=r"has no pocket models: make them, unival-merge pocket"):
        jobs_of(tmp_path)


def spoiled(home):
    """The home, with a NaN in the expert for entailment."""
    path = PocketSetup(home).source(ENTAILMENT, 0).path
    model = load_model(path)
    with torch.no_grad():
        model.decoder.layer_norm.weight[0] = math.nan
    write(home, 0, ENTAILMENT, model)
    return home


def test_cells_of_a_model_of_nan_have_no_score_and_the_others_go_on(home, tmp_path):
    own = spoiled(copied(home, tmp_path / "home"))
    assert run(own, tmp_path).evaluated == 10
    rows = rows_in(tmp_path)
    broken = rows["value"].isna()
    assert list(broken) == ["entailment" in shares for shares in rows["shares"]]
    assert all("decoder.layer_norm.weight holds NaN" in note for note in rows[broken]["note"])
    assert set(rows[~broken]["note"]) == {""}
    assert run(own, tmp_path).evaluated == 0
    records, scores = open_study(tmp_path, TINY.name)
    for form in FORMATS:
        assert "layer_norm.weight holds NaN" in written(records, scores, form) or form == "csv"
    page = write_report(tmp_path, TINY.name, tmp_path / "report.html")
    assert "layer_norm.weight holds NaN" in page.read_text()
    with pytest.raises(StudyError, match="no merged points on val"):
        best_points(records, {}, [tuple(TASKS)], ["vanilla"])


def test_a_search_names_the_weights_that_give_no_score(home, tmp_path):
    grid = Grid(TINY.name, UnivalSubject(PocketSetup(spoiled(copied(home, tmp_path / "home"))), 2))
    mixture = Mixture(grid, {one.name: one for one in (VQA, ENTAILMENT)}, tmp_path)
    with pytest.raises(StudyError, match=r"1.00 entailment has no score of vqa on val: .*layer_norm.weight holds NaN"):
        search(mixture.space, "grid", mixture.evaluate, 3)
    assert len(mixture.known()) == 1


# -- stops


def test_a_killed_run_goes_on_with_the_same_rows(home, full, tmp_path):
    """Killed with its two workers at their tasks: at most what is in flight is lost, and they end by themselves."""
    code = (
        "import sys; from functools import partial; from pathlib import Path\n"
        "if __name__ == '__main__':\n"
        f"    sys.path[:0] = [{str(ROOT)!r}]\n"
        "    from tests.experiments.grid.test_grid import evaluate, plan, run_cells\n"
        f"    run_cells(*plan(Path({str(home)!r})), Path({str(tmp_path)!r}), partial(evaluate, processes=2))\n"
    )
    script = tmp_path / "go.py"
    script.write_text(code)
    process = subprocess.Popen([sys.executable, str(script)], cwd=ROOT, stderr=subprocess.PIPE)
    rows = tmp_path / "rows.jsonl"
    while not rows.exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()  # waits for the workers too, who hold the pipe
    assert process.returncode == -signal.SIGKILL, errors.decode()
    there, torn = divmod(len(rows_in(tmp_path)), 3)
    assert torn == 0
    assert 1 <= there < 10
    summary = run(home, tmp_path)
    assert (summary.evaluated, summary.known) == (10 - there, there)
    assert told(rows_in(tmp_path)).equals(told(rows_in(full[0])))


def test_what_a_worker_raises_is_raised(home, tmp_path):
    own = copied(home, tmp_path / "home")
    jobs = jobs_of(own)
    PocketSetup(own).source(VQA, 0).path.unlink()
    with pytest.raises(merge.MergeError, match="vqa"):
        list(evaluate(groups(jobs), UnivalSubject(PocketSetup(own), 2)))


# -- one model that moves


def at(worker, jobs, method, policy, task="vqa"):
    job = next(j for j in jobs if (j.cell.point.method, j.cell.point.batchnorm, j.cell.task) == (method, policy, task))
    model = worker.model_for(job)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}, model


def worker_of(home):
    return Worker(UnivalSubject(PocketSetup(home)))


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def test_batchnorm_policies_do_not_leak(home):
    jobs = jobs_of(home, batchnorm=("all",))
    subject = UnivalSubject(PocketSetup(home), 2)
    fresh = {
        (policy, task): at(Worker(subject), jobs, "interpolate", policy, task)[0]
        for policy in ("average", "from:vqa", "recalibrate:mixture", "recalibrate:task")
        for task in ("vqa", "entailment")
    }
    assert not same(fresh["average", "vqa"], fresh["recalibrate:mixture", "vqa"])
    assert not same(fresh["recalibrate:task", "vqa"], fresh["recalibrate:task", "entailment"])
    assert same(fresh["recalibrate:mixture", "vqa"], fresh["recalibrate:mixture", "entailment"])
    worker = Worker(subject)
    state, drawn = torch.get_rng_state(), random.getstate()
    for policy, task in [*fresh, *reversed(fresh)]:
        found, model = at(worker, jobs, "interpolate", policy, task)
        assert same(found, fresh[policy, task]), (policy, task)
        assert not any(module.training for module in model.modules())
        assert {module.momentum for module in model.modules() if hasattr(module, "momentum")} == {0.1}
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == drawn


def test_statistics_from_an_expert_are_its_own(home):
    jobs = jobs_of(home, batchnorm=("from:entailment",))
    found, _ = at(worker_of(home), jobs, "interpolate", "from:entailment")
    expert = merge.load_checkpoint(PocketSetup(home).source(ENTAILMENT, 0).path)
    names = [name for name in found if "running" in name]
    assert names
    assert all(torch.equal(found[name], expert[name]) for name in names)
    assert not torch.equal(found["encoder.layers.0.fc1.weight"], expert["encoder.layers.0.fc1.weight"])


def test_ends_are_the_experts_bitwise_after_any_point(home):
    jobs, worker = jobs_of(home), worker_of(home)
    at(worker, jobs, "interpolate", "average")
    job = next(job for job in jobs if job.cell.point.id == single(VQA).id)
    expert = merge.load_checkpoint(PocketSetup(home).source(VQA, 0).path)
    assert all(torch.equal(tensor, expert[name]) for name, tensor in worker.model_for(job).state_dict().items())


def test_a_point_is_set_once_for_all_its_tasks(home):
    jobs, worker = jobs_of(home), worker_of(home)
    own = [job for job in jobs if job.cell.point.method == "interpolate"]
    model = worker.model_for(own[0])
    assert isinstance(model, UnivalModel)
    with torch.no_grad():
        model.encoder.layer_norm.bias += 1  # would be overwritten
    marked = model.encoder.layer_norm.bias.clone()
    assert torch.equal(worker.model_for(own[1]).encoder.layer_norm.bias, marked)


def test_recalibration_sees_every_task_in_every_batch_and_no_label(home):
    subject = UnivalSubject(PocketSetup(home))
    batches = list(mixed([subject.dataset(task, "train", CONFIGS["pocket"]) for task in TASKS]))
    assert [len(batch) for batch in batches] == [24]
    assert {example.task for batch in batches for example in batch.examples} == set(TASKS)
    assert all(example.target == [] for batch in batches for example in batch.examples)
