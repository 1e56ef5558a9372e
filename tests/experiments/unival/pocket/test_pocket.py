"""The pocket pipeline on a dozen rows of everything: each step once, resumable, and the table made from rows alone."""

import json
import os
import threading
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from experiments.commands import app
from experiments.errors import StudyError
from experiments.grid.rows import read_rows, read_scores
from experiments.study.points import Cell, Expert
from experiments.unival.chance import most_common
from experiments.unival.pocket import backbone
from experiments.unival.pocket.backbone import (
    cell_loss,
    cell_scores,
    fresh_model,
    inflate,
    read_labelled,
    shuffled,
    word_states,
)
from experiments.unival.pocket.data import Files, world_tokenizer
from experiments.unival.pocket.experts import expert_file, make_models
from experiments.unival.pocket.pipeline import PRESETS, SHIPPED, Pocket, file_digest
from experiments.unival.pocket.table import BLANK, MAJORITY, WORDS, write_table
from experiments.unival.setups import PocketSetup
from experiments.unival.subject import UnivalSubject
from experiments.unival.world.audit import audit
from experiments.unival.world.build import make_world
from experiments.unival.world.tables import read_world
from unival_core.checkpoint import load_model
from unival_core.config import CONFIGS
from unival_core.model import UnivalModel
from unival_core.tasks import TASKS
from unival_core.training.recipes import BACKBONE, STAGES, options_for

CONFIG = CONFIGS["pocket"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Everything of the smallest preset, with its table."""
    pocket = Pocket(tmp_path_factory.mktemp("made") / "pocket", "micro")
    make_models(pocket, 1, progress=False)
    write_table(pocket, "test", 1, progress=False)
    return pocket


@pytest.fixture(scope="module")
def world(made):
    return made.world


def files(world):
    return Files(world, world_tokenizer(world, CONFIG), CONFIG)


def modified(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# -- the pipeline


def test_every_step_leaves_its_files(made):
    stages = [stage.name for stage in STAGES["pocket"]]
    kept = {str(path.relative_to(made.folder)) for path in made.folder.rglob("last.safetensors")}
    assert kept == {f"pretraining/{name}/last.safetensors" for name in stages} | {
        f"experts/vanilla/{task}/last.safetensors" for task in PRESETS["micro"].experts
    }
    steps = [line.split(",")[0] for line in (made.folder / "times.csv").read_text().splitlines()]
    assert steps[:4] == ["world", "backbone", *(f"pretraining {name}" for name in stages)]


def test_a_second_call_does_nothing(made):
    before = modified(made.folder)
    make_models(made, 1, progress=False)
    table = write_table(made, "test", 1, progress=False)
    assert {path for path, time in modified(made.folder).items() if before[path] != time} <= {table}


def test_experts_differ_from_the_pretrained_model_by_what_may_be_trained(made):
    start = load_model(made.pretrained).state_dict()
    for task in PRESETS["micro"].experts:
        expert = load_model(expert_file(made, Expert(task, task, "vanilla"))).state_dict()
        frozen = torch.equal(expert["encoder.embed_tokens.weight"], start["encoder.embed_tokens.weight"])
        assert frozen == (options_for(TASKS[task], "pocket").group == "all but embeddings")
        assert expert.keys() == start.keys()
        assert not torch.equal(expert["encoder.layers.0.fc1.weight"], start["encoder.layers.0.fc1.weight"])


def test_every_model_is_evaluated_on_every_task_and_blind_ones_beside(made):
    rows = read_rows(made.folder / "rows.jsonl")
    tasks = PRESETS["micro"].experts
    names = [next(iter(shares)) for shares in rows["shares"]]
    found = {(name, task, how) for name, task, how in zip(names, rows["task"], rows["experts"], strict=True)}
    seeing = {(name, task, "vanilla") for name in ("pretrained", *tasks) for task in tasks}
    blank = {(task, task, BLANK) for task in tasks}
    blind = {(MAJORITY, task, "vanilla") for task in tasks} | {(WORDS, task, "vanilla") for task in ("vqa", "video-qa")}
    assert found == seeing | blank | blind
    assert len(rows) == len(found)
    keys = [row.key for row in rows.itertuples() if (next(iter(row.shares)), row.task, row.experts) in seeing | blank]
    assert {len(scores) for scores in read_scores(made.folder / "rows.jsonl", keys).values()} == {8}


def test_the_table_names_every_row(made):
    text = (made.folder / "table-test.md").read_text()
    assert [text.count(name) for name in (BLANK, MAJORITY, WORDS)] == [3, 1, 1]
    assert "video-qa test, VQA accuracy (%, n = 8, 12)" in text


def test_the_command_prints_the_table(made):
    done = CliRunner().invoke(app, ["pocket", str(made.folder), "--preset", "micro", "--processes", "1"])
    assert (done.exit_code, done.stdout) == (0, (made.folder / "table-test.md").read_text() + "\n")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "\xff", '{"preset": "micro"}', '{"preset": [], "seed": 0}', '{"preset": "micro", "seed": "x"}'],
)
def test_a_broken_record_is_one_line(tmp_path, text):
    (tmp_path / "pocket.json").write_text(text, encoding="latin-1")
    for ask in (
        lambda: PocketSetup(tmp_path).pocket(0),
        lambda: make_models(Pocket(tmp_path, "micro"), progress=False),
    ):
        with pytest.raises(
            StudyError, match=r"pocket.json does not tell which pocket this is \([^\n]+make the pocket"
        ) as told:
            ask()
        assert "\n" not in str(told.value)
    assert os.listdir(tmp_path) == ["pocket.json"]


def test_the_second_pocket_in_a_folder_waits(made, caplog):
    done = []
    with made.alone():
        waiting = threading.Thread(target=lambda: done.append(write_table(made, "test", 1, progress=False)))
        waiting.start()
        waiting.join(0.3)
        assert not done
    waiting.join(60)
    assert done
    assert caplog.messages == [f"another run works in {made.folder}: waiting until it is done"]


def test_presets_do_not_share_a_folder(made):
    with pytest.raises(StudyError, match="choose another folder"):
        make_models(replace(made, seed=1), 1, progress=False)
    with pytest.raises(StudyError, match="no preset 'tiny'"):
        Pocket(made.folder, "tiny")


@pytest.mark.parametrize("name", ["quick", "full"])
def test_presets_have_recipes_for_their_experts(name):
    assert all("pocket" in TASKS[task].recipes for task in PRESETS[name].experts)


# -- data


def test_tokenizer_knows_every_word_that_is_asked_and_answered(world):
    data = files(world)
    for task in ("vqa", "caption", "grounding", "entailment", "grounded-caption", "video-qa", "audio-caption"):
        rows = data.data(task, "train")
        for row in range(len(rows)):
            example = rows.read(row)
            assert data.tokenizer.unk not in (*example.source, *example.target), example.place


def test_blank_rows_hide_the_image_and_nothing_else(world):
    data = files(world)
    seen, blank = data.data("vqa", "test").read(0), data.data("vqa", "test", blank=True).read(0)
    assert blank.media.unique().tolist() == [127]
    assert len(seen.media.unique()) > 1
    assert (blank.source, blank.target) == (seen.source, seen.target)


def test_most_common_answer_is_counted_in_training(world):
    rows = files(world).data("vqa", "train")
    targets = [rows.task.target(rows.table[row], None) for row in range(len(rows))]
    answer = most_common(rows.task, rows.table)
    assert targets.count(answer) == max(targets.count(target) for target in targets)


def test_chance_is_what_one_answer_to_all_rows_scores(world, monkeypatch):
    """Of boxes it is the one that the audit of the world guesses."""
    setup = PocketSetup(world.parent)
    monkeypatch.setattr(PocketSetup, "pocket", lambda self, seed=None: SimpleNamespace(world=world))
    cells = [Cell(None, task, "test") for task in ("vqa", "grounding", "entailment")]
    found = UnivalSubject(setup, limit=10).chance(cells)
    table = files(world).data("vqa", "test").table
    answer = most_common(TASKS["vqa"], files(world).data("vqa", "train").table)
    scores = [TASKS["vqa"].reference(table[row]).get(answer, 0.0) for row in range(10)]
    assert found["vqa"]["test"] == pytest.approx(sum(scores) / 10)
    assert UnivalSubject(setup).chance(cells[1:2]) == {"grounding": {"test": audit(world, "grounding").majority}}
    assert set(found) == {"vqa", "grounding", "entailment"}


# -- the backbone


def test_fresh_weights_have_the_spread_that_fits_a_narrow_model():
    model = fresh_model(CONFIG, seed=0)
    narrow = CONFIG.width**-0.5
    assert model.encoder.layers[0].self_attn.q_proj.weight.std().item() == pytest.approx(narrow, rel=0.05)
    assert model.encoder.embed_tokens.weight.std().item() == pytest.approx(narrow, rel=0.05)
    assert model.decoder.output_projection.weight is model.encoder.embed_tokens.weight
    assert model.encoder.token_rel_pos_table_list[0].weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert torch.equal(fresh_model(CONFIG, seed=0).encoder.layer_norm.weight, model.encoder.layer_norm.weight)


def test_labels_and_images_lie_on_the_same_cells(world):
    images, labels = read_labelled(world, "val", 48)
    assert images.shape == (12, 3, 48, 48)
    assert images.dtype == torch.uint8
    assert labels.shape == (6, 12, 6, 6)
    assert labels[2:, 5, 1, 4].tolist() == [0, 1, 1, 4]  # top, right, second row, fifth column
    assert labels[2:, 5, 2, 3].tolist() == [2, 2, 2, 3]  # in the middle of both
    cells = images.float().unfold(2, 8, 8).unfold(3, 8, 8).std((1, 4, 5))  # N x 6 x 6
    assert cells[labels[0] < 10].mean() > 1.5 * cells[labels[0] == 11].mean()


def test_cell_loss_adds_what_is_told_of_a_cell():
    kinds = (12, 7, 3, 3, 6, 6)
    loss = cell_loss([torch.zeros(1, 36, n) for n in kinds], torch.zeros(6, 1, 36, dtype=torch.long))
    assert loss.item() == pytest.approx(torch.tensor(kinds).log().sum().item(), rel=1e-5)


def test_a_cell_like_a_word_scores_highest_for_it(world):
    model = fresh_model(CONFIG, seed=0)
    words = [word_states(model.encoder, world_tokenizer(world, CONFIG), names) for names in backbone.WORDS]
    heads = nn.ModuleList([nn.Linear(CONFIG.width, n) for n in (4, 6, 6)])
    cells = (words[0][3] + words[1][5] + words[2][1]).view(1, 1, -1)
    scores = cell_scores(cells, words, heads)
    assert [score.shape[-1] for score in scores] == [12, 7, 3, 3, 6, 6]
    assert [score[0, 0].argmax().item() for score in scores[:3]] == [3, 5, 1]


def test_queries_start_as_keys_so_that_like_attends_to_like():
    model = fresh_model(CONFIG, seed=0)
    for layer in (*model.encoder.layers, *model.decoder.layers):
        assert torch.equal(layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight)


def test_shuffled_batches_show_every_row_once_an_epoch():
    batches = shuffled(10, 3, seed=0)
    first = torch.cat([next(batches) for _ in range(3)])
    assert len(set(first.tolist())) == 9
    assert first.tolist() != torch.cat([next(batches) for _ in range(3)]).tolist()


def test_an_inflated_network_sees_a_still_film_as_its_image():
    """Away from the first and last frames, where the video's padding stands for frames that are not there."""
    torch.manual_seed(0)
    model = UnivalModel(CONFIG).eval()
    for norm in model.encoder.get_submodule("embed_images").modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_mean, -0.1, 0.1)
    inflate(model)
    image = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        flat = model.encoder.get_submodule("embed_images")(image)
        video = model.encoder.get_submodule("embed_videos")(image.unsqueeze(2).expand(-1, -1, 64, -1, -1))
    assert video.shape == (1, 128, 16, 6, 6)
    torch.testing.assert_close(video[:, :, 8], flat, rtol=1e-4, atol=1e-5)
    assert torch.equal(
        model.encoder.get_submodule("video_proj").weight, model.encoder.get_submodule("image_proj").weight
    )


def test_world_of_the_preset_is_the_plain_world(made, tmp_path):
    assert read_world(make_world(tmp_path / "again", 0, "micro")) == read_world(made.world)


def test_the_shipped_weights_are_those_of_the_recipe():
    record = json.loads(SHIPPED.with_suffix(".json").read_text())
    assert record["digest"] == file_digest(SHIPPED)
    assert record["recipe"]["stages"] == json.loads(json.dumps([asdict(stage) for stage in STAGES["pocket"]]))
    assert record["recipe"]["backbone"] == json.loads(json.dumps(asdict(BACKBONE)))
    assert SHIPPED.stat().st_size < 6e6
