"""The study of pretrainings on a dozen rows: equal examples on all sides, runs shared, each once, rows and costs."""

import csv
import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

import merge
from experiments.commands import app
from experiments.errors import StudyError
from experiments.grid.engines import engine_named
from experiments.grid.grid import Grid, experts_of, run_cells
from experiments.pages.tables import study_tables
from experiments.pages.views import open_study, read_notes
from experiments.study.points import Expert
from experiments.unival.costs import costs_table
from experiments.unival.pocket.backbone import fresh_model
from experiments.unival.pocket.costs import measured
from experiments.unival.pocket.data import Files, world_tokenizer
from experiments.unival.pocket.experts import expert_file, make_experts, run_record
from experiments.unival.pocket.kinds import step_of, with_parents
from experiments.unival.pocket.pipeline import Pocket, file_digest
from experiments.unival.pocket.pretrainings import COMPARISONS, TRAININGS, comparisons_of, lineage
from experiments.unival.setups import PocketSetup
from experiments.unival.studies import STUDIES, Choice
from experiments.unival.subject import UnivalSubject
from tests.experiments.made_pocket import copied
from unival_core.checkpoint import save_model
from unival_core.config import CONFIGS
from unival_core.errors import UnivalError
from unival_core.tasks import TASKS
from unival_core.training import recipes
from unival_core.training.options import TrainOptions
from unival_core.training.state import RunFolder
from unival_core.vocabulary import TOKENIZER_KEY

STUDY = STUDIES["pretraining"]
CURRICULUM, LINEAR = ("video-from-start", "image-then-video"), ("vqa-from-image", "vqa-projections")
UNBALANCED = ("unbalanced-proportional", "unbalanced-balanced")


def model(name):
    return Expert(name, "", "+".join(comparisons_of(name)))


@pytest.fixture(scope="module", autouse=True)
def small():
    """Batches of eight; micro makes one update of each training."""
    with pytest.MonkeyPatch.context() as patch:
        first, *others = recipes.STAGES["pocket"]
        stage = replace(first, options=replace(first.options, batch=8))
        patch.setitem(recipes.STAGES, "pocket", (stage, *others))
        for name, task in TASKS.items():
            patch.setitem(
                TASKS, name, replace(task, recipes={"pocket": {**task.recipes.get("pocket", {}), "batch": 2}})
            )
        yield


@pytest.fixture(scope="module")
def pocket(tmp_path_factory, micro_world):
    """A world and weights that stand for a backbone, and the trainings of some comparisons."""
    pocket = Pocket(tmp_path_factory.mktemp("pretrainings") / "home", "micro")
    copied(micro_world, pocket.world)
    fresh = fresh_model(CONFIGS["pocket"], 0)
    tokenizer = world_tokenizer(pocket.world, fresh.config)
    save_model(fresh, pocket.backbone, metadata={TOKENIZER_KEY: tokenizer.to_json()})
    make_experts(pocket, map(model, (*CURRICULUM, *LINEAR, *UNBALANCED)), 1, progress=False)
    return pocket


def run_of(pocket, name):
    return json.loads(run_record(expert_file(pocket, model(name))).read_text())


def tensors(pocket, name):
    return merge.open_checkpoint(expert_file(pocket, model(name)))


def modified(pocket):
    return {path: path.stat().st_mtime_ns for path in (pocket.folder / "experts").rglob("*") if path.is_file()}


# -- equal examples, and runs that are shared


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_all_sides_of_a_comparison_see_as_many_examples(comparison, tmp_path):
    def examples(name):
        steps = with_parents([step_of(Pocket(tmp_path, "full"), model(name))])
        seen = [step.options.updates * step.options.batch for step in steps]
        return (sum(seen[:-1]), seen[-1]) if TRAININGS[name].finetunes else sum(seen)

    variants = COMPARISONS[comparison]
    for task in {task for tasks in variants.values() for task in tasks}:
        asked = [name for name, tasks in variants.items() if task in tasks]
        assert len(asked) > 1
        tuned = [examples(name) for name in asked if TRAININGS[name].finetunes]
        assert len({own for _, own in tuned}) <= 1
        assert len({before for before, _ in tuned if before}) <= 1  # from equally long pretrainings, or from none
        pretrained = [name for name in asked if not TRAININGS[name].finetunes and TRAININGS[name].batch == 1]
        assert len({examples(name) for name in pretrained}) <= 1


def test_at_equal_steps_a_task_alone_has_its_own_examples_in_every_update(tmp_path):
    alone, beside = (step_of(Pocket(tmp_path, "full"), model(name)).options for name in ("vqa-only-quarter", "image"))
    assert alone.updates == beside.updates
    assert alone.batch == beside.batch / len(TRAININGS["image"].portions)


def test_examples_are_equal_because_stages_add_up():
    assert [training.updates for training in lineage("image-then-video")] == [400, 100]
    assert [training.updates for training in lineage("video-from-start")] == [500]
    assert [training.updates for training in lineage("audio-from-video")] == [400, 100, 80]


def test_a_training_of_several_comparisons_is_one_model(pocket):
    cells = STUDY.cells(Choice())
    experts = experts_of(cells)
    assert len(experts) == len({expert_file(pocket, expert) for expert in experts})
    assert {expert.name for expert in experts} == {*TRAININGS} - {"video-only"}  # which others only start from
    assert model("image").kind == "balancing+tasks"
    only = [cell for cell in STUDY.cells(Choice(only="tasks")) if "image" in cell.point.shares]
    assert [(cell.point.id, cell.task) for cell in only] == [("single average 1.0 balancing+tasks/image", "vqa")]
    assert only[0].point.id in {cell.point.id for cell in cells}
    assert step_of(pocket, model("image-then-video")).parents == step_of(pocket, model("image-longer")).parents


# -- what is trained on what


def test_trainings_start_from_the_backbone_or_another_training(pocket):
    for name, start in (("image", None), ("image-then-video", "image"), ("vqa-projections", "image-longer")):
        file = pocket.backbone if start is None else expert_file(pocket, model(start))
        assert run_of(pocket, name)["init"] == file_digest(file)
    assert not pocket.pretrained.exists()  # nothing needs it


def test_unbalanced_data_are_a_tenth_of_two_tasks(pocket):
    proportional, balanced = (run_of(pocket, name)["data"] for name in UNBALANCED)
    assert proportional["sizes"] == balanced["sizes"] == {"caption": 12, "vqa": 12, "grounding": 1, "entailment": 1}
    assert set(balanced["shares"].values()) == {0.25}
    in_proportion = {"caption": 1 / 2.2, "vqa": 1 / 2.2, "grounding": 0.1 / 2.2, "entailment": 0.1 / 2.2}
    assert proportional["shares"] == pytest.approx(in_proportion)
    assert proportional["draws_per_step"] == balanced["draws_per_step"] == 8


def test_a_part_of_a_data_set_is_its_first_rows(pocket):
    config = CONFIGS["pocket"]
    files = Files(pocket.world, world_tokenizer(pocket.world, config), config)
    whole, part = files.data("vqa", "pretrain"), files.data("vqa", "pretrain", part=0.25)
    assert (len(whole), len(part)) == (12, 3)
    assert [part[row].name for row in range(3)] == [whole[row].name for row in range(3)]
    with pytest.raises(IndexError, match="row 3 of a table of 3"):
        part.table[3]


def test_the_video_network_starts_as_the_image_network(pocket):
    found = tensors(pocket, "image-then-video")
    names = [key for key in found if key.startswith("encoder.embed_videos.") and found[key].dim() == 5]
    assert names
    for own in names:
        flat = tensors(pocket, "image")[own.replace("embed_videos", "embed_images")]
        expected = (flat / found[own].shape[2]).unsqueeze(2).expand_as(found[own])
        torch.testing.assert_close(found[own], expected, atol=2.5e-3, rtol=0)  # an update moves a weight by lr = 1e-3


def test_projections_alone_are_trained(pocket):
    start, end = (tensors(pocket, name) for name in ("image-longer", "vqa-projections"))
    changed = {name for name in start if not torch.equal(start[name], end[name]) and "embed_images" not in name}
    assert changed == {"encoder.image_proj.weight", "encoder.image_proj.bias"}
    networks = [name for name in start if "embed_images" in name and name.endswith(("weight", "bias"))]
    assert all(torch.equal(start[name], end[name]) for name in networks)  # statistics follow the data


# -- once


def test_a_second_call_makes_nothing(pocket):
    before, costs = modified(pocket), (pocket.folder / "costs.csv").read_text()
    make_experts(pocket, map(model, (*CURRICULUM, *LINEAR, *UNBALANCED)), 1, progress=False)
    assert modified(pocket) == before
    assert (pocket.folder / "costs.csv").read_text() == costs


def test_other_portions_are_another_training(pocket):
    record = run_record(expert_file(pocket, model(UNBALANCED[1])))
    text = record.read_text()
    record.write_text(json.dumps(json.loads(text) | {"portions": {"vqa": [1.0, 0.5]}}))
    with pytest.raises(StudyError, match="unbalanced-balanced is another run: caption was None, is"):
        make_experts(pocket, [model(UNBALANCED[1])], 1, progress=False)
    record.write_text(text)


def test_rows_of_a_comparison_its_tables_and_its_costs(pocket):
    grid = Grid("pretraining", UnivalSubject(PocketSetup(pocket.folder), 2), notes=STUDY.notes)
    cells = STUDY.cells(Choice(only="curriculum"))
    assert run_cells(grid, cells, pocket.folder, engine_named("local", 1), progress=False).evaluated == 12
    assert run_cells(grid, cells, pocket.folder, engine_named("local", 1), progress=False).known == 12
    rows, scores = open_study(pocket.folder, "pretraining")
    assert {(row["point"], row["experts"], row["method"], row["n"]) for row in rows} == {
        ("1.00 video-from-start", "curriculum", "single", 2),
        ("1.00 image-then-video", "curriculum+modalities", "single", 2),
    }
    notes = read_notes(pocket.folder, "pretraining")
    tables = study_tables(rows, scores, notes.tables, notes.beside)
    assert tables["curriculum"].rows == [("1.00 video-from-start",), ("1.00 image-then-video",)]
    assert len(tables["curriculum"].columns) == 6
    assert [column[0] for column in tables["modalities"].columns] == ["caption", "vqa", "grounding", "entailment"]
    quoted = ["curriculum", "modalities"]
    beside = [f"{title}, {metric}" for metric in ("negative log-likelihood", "confidence") for title in quoted]
    assert sorted(tables) == sorted([*quoted, *beside])
    told = CliRunner().invoke(app, ["study", "table", "pretraining", str(pocket.folder)])
    assert told.exit_code == 0, told.output
    assert "## costs" in told.output
    assert "| image-then-video | image | 1 | 8 |" in told.output


def test_costs_of_every_training_are_noted_once(pocket):
    lines = list(csv.DictReader((pocket.folder / "costs.csv").read_text().splitlines()))
    made = {*CURRICULUM, *LINEAR, *UNBALANCED, "image", "image-longer"}
    assert sorted(line["training"] for line in lines) == sorted(made)
    for line in lines:
        assert float(line["cpu_seconds"]) > 0
        assert line["measured"] == line["updates"] == "1"
        if line["peak_mb"]:
            assert float(line["peak_mb"]) >= float(line["start_mb"]) > 50


def test_of_a_training_that_goes_on_the_rest_is_measured(tmp_path):
    folder = RunFolder(tmp_path / "some")
    folder.path.mkdir()
    folder.save_state({"update": 30})
    with measured(Pocket(tmp_path, "micro"), folder.path, "backbone", TrainOptions(lr=1e-3, updates=40, batch=2)):
        pass
    line = next(csv.DictReader((tmp_path / "costs.csv").read_text().splitlines()))
    assert (line["training"], line["updates"], line["measured"], line["examples"]) == ("some", "40", "10", "80")


def test_costs_add_up_along_the_lineage(tmp_path):
    assert costs_table(tmp_path, ["image"]) == ""
    head = "training,seed,start,updates,measured,examples,cpu_seconds,start_mb,peak_mb\n"
    first, second = "image,0,backbone,400,100,25600,30.0,300,500\n", "both,0,image,100,100,6400,50.0,300,700\n"
    (tmp_path / "costs.csv").write_text(head + first + second)
    lines = costs_table(tmp_path, ["both"]).splitlines()
    assert lines[2] == "| image | backbone | 400 | 25600 | 120 | 120 | 500 |"
    assert lines[3] == "| both | image | 100 | 6400 | 50 | 170 | 700 |"
    (tmp_path / "costs.csv").write_text(head + second)
    with pytest.raises(StudyError, match="is not whole"):
        costs_table(tmp_path, ["both"])
    assert costs_table(tmp_path, ["another study's expert"]) == ""


# -- what there is not


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"setup": "base"}, "study pretraining is of setup pocket"),
        ({"kinds": ("vanilla",)}, "has comparisons, no kinds: choose --only balancing"),
        ({"only": "vqa"}, "has nothing of 'vqa': choose one of balancing, curriculum"),
    ],
)
def test_what_the_study_has_not_is_told(choice, message):
    with pytest.raises(StudyError, match=message):
        STUDY.cells(Choice(**choice))


def test_pretrainings_need_a_backbone(tmp_path):
    with pytest.raises(StudyError, match="no backbone, as its preset is quick"):
        make_experts(Pocket(tmp_path / "none", "quick"), [model("image")], 1, progress=False)
    with pytest.raises(UnivalError, match="no pretraining 'audio'"):
        step_of(Pocket(tmp_path / "none"), Expert("audio", "", "tasks"))
    assert not (tmp_path / "none").exists()
