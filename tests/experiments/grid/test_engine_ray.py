"""Ray with two actors: the rows of one process, whatever becomes of an actor."""

import os
import signal
from dataclasses import replace
from functools import partial

import pytest

import experiments
from experiments.grid.engines.local import evaluate as locally
from experiments.grid.grid import Grid, groups, run_cells
from experiments.grid.rows import read_rows
from experiments.grid.worker import Worker
from experiments.unival.setups import PocketSetup
from experiments.unival.studies import Choice
from experiments.unival.subject import UnivalSubject
from tests.experiments import made_pocket, made_study

ray = pytest.importorskip("ray", reason="the extra ray is not installed")
from experiments.grid.engines.ray import Place, _next, evaluate, experts_of  # noqa: E402

TINY = replace(made_pocket.TINY, points=4, ensembles=("vanilla",))


@pytest.fixture(scope="module")
def plan(home):
    return Grid("tiny", UnivalSubject(PocketSetup(home), limit=2)), TINY.cells(Choice(split="val"))


@pytest.fixture(scope="module")
def cluster():
    """Ray with two slots for all tests of the module; it writes warnings of its own."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def rows(plan, folder, engine):
    folder.mkdir()
    run_cells(*plan, folder, engine, progress=False)
    found = read_rows(folder / "rows.jsonl")
    return found.drop(columns=["seconds"]).sort_values("key").reset_index(drop=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_rows_are_those_of_one_process_also_when_a_worker_is_killed(plan, cluster, tmp_path):
    marker = tmp_path / "killed"

    class Fragile(Worker):
        """Its process dies once, in the middle of the run."""

        def rows(self, job, model):
            if job.cell.point.method == "interpolate" and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().rows(job, model)

    wanted = rows(plan, tmp_path / "local", locally)
    assert rows(plan, tmp_path / "ray", partial(evaluate, processes=2)).equals(wanted)
    assert rows(plan, tmp_path / "fragile", partial(evaluate, processes=2, make=Fragile)).equals(wanted)
    assert marker.exists()


def test_a_place_goes_on_with_the_experts_it_has(plan):
    waiting = groups(plan[0].jobs(plan[1]))
    kinds = [experts_of(group) for group in waiting]
    mixed = next(kind for kind in kinds if kinds.count(kind) > 1)
    assert _next(waiting, Place(None, experts=mixed), [mixed]) == kinds.index(mixed)
    assert kinds[_next(waiting, Place(None), [kinds[0]])] != kinds[0]
    assert _next(waiting[:1], Place(None), [kinds[0]]) == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_study_of_any_model_has_the_same_rows(cluster, tmp_path):
    """Also when a worker is killed: its scoring function does that once."""
    given = made_study.study(points=3)

    def contents(results):
        return results.rows.drop(columns=["seconds"]).sort_values("key").reset_index(drop=True)

    wanted = contents(experiments.run(given, tmp_path / "local", progress=False))
    fragile = replace(given, tasks={"up": partial(die_once, tmp_path / "killed"), "down": given.tasks["down"]})
    for number, study in enumerate((given, fragile)):
        found = experiments.run(study, tmp_path / f"ray {number}", engine="ray", processes=2, progress=False)
        assert contents(found).equals(wanted)
    assert (tmp_path / "killed").exists()


def die_once(marker, model, split):
    """Kill this process at the first test split that any process meets, then score."""
    if split == "test" and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return made_study.score_up(model, split)
