"""Setup base: where files are looked for, and the whole way through made files of the published layout."""

import argparse
import json
import os
import pickle
import runpy

import pytest
import torch
from typer.testing import CliRunner

from experiments.commands import app
from experiments.errors import StudyError
from experiments.grid.engines.local import evaluate
from experiments.grid.grid import Grid, experts_of, run_cells
from experiments.grid.rows import read_rows
from experiments.study.points import Expert
from experiments.unival.published import (
    BPE_PAGE,
    CHECKPOINTS_PAGE,
    DATA_PAGE,
    IMAGE_DATA_PAGE,
    PRETRAINED_FILE,
    PRETRAINED_FILES,
    BaseSetup,
    page_of,
)
from experiments.unival.studies import FAMILIES, STUDIES, Choice, MixtureStudy
from experiments.unival.subject import UnivalSubject
from merge import open_checkpoint
from tests import ROOT
from tests.unival_core import made_rows
from tests.unival_core.made_rows import LAYOUTS, cells
from unival_core import TASKS
from unival_core.config import CONFIGS, AudioConfig, ResNetConfig, UnivalConfig, replace
from unival_core.data.media_cache import MediaCache
from unival_core.errors import UnivalError
from unival_core.model import UnivalModel
from unival_core.vocabulary import Tokenizer

# The published vocabulary, tables and strides, everything else narrow.
SMALL = UnivalConfig(
    width=16,
    heads=2,
    ffn=24,
    encoder_layers=1,
    decoder_layers=1,
    image=ResNetConfig(depths=(1, 1, 1, 1), planes=(4, 4, 4, 8), stem=4),
    video=ResNetConfig(depths=(1, 1, 1, 1), planes=(4, 4, 4, 8), expansion=2, groups=2, stem=4, kernel=3),
)
HEARING = replace(SMALL, audio=AudioConfig(channels=(2, 2, 2, 2, 2, 4)))
WORDS = [*made_rows.WORDS, "is a b c d e f g h i j k l m n o p q r s t u v w x y z"]
STUDY = MixtureStudy(
    name="small",
    question="?",
    source="here",
    experts={"vqa": "vqa", "grounding": "grounding"},
    mixtures=(("vqa", "grounding"),),
    points=3,
    ensembles=("vanilla",),
    shifts=False,
)
VQA = Expert("vqa", "vqa", "vanilla")


class Setup(BaseSetup):
    """With a vocabulary of its own, since the published files are not ours to ship."""

    def tokenizer(self, config):
        return Tokenizer.train(WORDS, CONFIGS["base"])


def state_of(config, seed):
    """A state dict as the original saves it: halves, the token matrix under three names, format versions."""
    torch.manual_seed(seed)
    state = {k: v.half() if v.is_floating_point() else v for k, v in UnivalModel(config).state_dict().items()}
    return state | {"encoder.version": torch.tensor([3.0])}


def write_checkpoint(file, config, seed, task=None):
    """A training file with its settings, and a running average where such are published."""
    file.parent.mkdir(parents=True, exist_ok=True)
    more = {"extra_state": {"ema": state_of(config, seed + 50)}} if task and task.published.average else {}
    fields = argparse.Namespace(arch="unival_base", hop_size=200, image_encoder_name="timm_resnet", with_cls=False)
    cfg = {"model": fields, "task": {"_name": task.published.original if task else "unify_task", "num_bins": 1000}}
    torch.save({"args": None, "cfg": cfg, "model": state_of(config, seed), **more}, file)


def write_data(data, task, rows=1):
    """A row of every published file of a task, its answers and its references."""
    told = TASKS[task].published
    lines = [cells(task, row) | {"image_id": str(row)} for row in range(rows)]
    text = "".join("\t".join(line[name] for name in LAYOUTS[task].split()) + "\n" for line in lines)
    for name in {file for files in told.files.values() for file in files}:
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text(text)
    for name in told.answers.values():
        (data / name).write_bytes(pickle.dumps({"four": 0, "dark red": 1}))
    for name in told.references.values():
        notes = [{"image_id": row, "id": row, "caption": "A red seven."} for row in range(rows)]
        (data / name).write_text(json.dumps({"images": [], "annotations": notes}))


@pytest.fixture
def setup(tmp_path):
    """Checkpoints of the pretrained model, the VQA expert with its running average, and grounding without videos."""
    checkpoints, data = tmp_path / "checkpoints", tmp_path / "data"
    grounding = replace(SMALL, video=None)
    states = {"pretrained": state_of(SMALL, 0), "vqa": state_of(SMALL, 1), "grounding": state_of(grounding, 2)}
    for name, state in states.items():
        file = checkpoints / (TASKS[name].published.checkpoint if name in TASKS else PRETRAINED_FILE)
        file.parent.mkdir(parents=True)
        more = {"extra_state": {"ema": state_of(SMALL, 3)}} if name == "vqa" else {}
        torch.save({"args": None, "model": state, **more}, file)
    for task, files in {"vqa": ["vqa_val"], "grounding": ["testA", "testB"]}.items():
        for number, name in enumerate(files):
            folder = data / ("vqa_data" if task == "vqa" else "refcocoplus_data")
            folder.mkdir(parents=True, exist_ok=True)
            values = cells(task, number, None)
            line = "\t".join(values[column] for column in LAYOUTS[task].split()) + "\n"
            (folder / (f"{name}.tsv" if task == "vqa" else f"refcocoplus_{name}.tsv")).write_text(line)
    (data / "vqa_data" / "trainval_ans2label.pkl").write_bytes(pickle.dumps({"four": 0, "dark red": 1}))
    return Setup(tmp_path, checkpoints, data)


@pytest.mark.slow
def test_published_files_go_the_whole_way(setup, tmp_path):
    (setup.checkpoints / "BPE").mkdir()
    for name in ("encoder.json", "vocab.bpe", "dict.txt"):
        (setup.checkpoints / "BPE" / name).touch()
    cells = STUDY.cells(Choice("base"))
    summary = run_cells(Grid("small", UnivalSubject(setup)), cells, tmp_path, evaluate, progress=False)
    rows = read_rows(tmp_path / "rows.jsonl")
    assert summary.evaluated == len(rows) == 10
    assert set(rows[rows["task"] == "grounding"]["n"]) == {2}
    assert set(rows[rows["task"] == "vqa"]["n"]) == {1}
    assert rows["value"].between(0, 1).all()
    again = run_cells(Grid("small", UnivalSubject(setup)), cells, tmp_path, evaluate, progress=False)
    assert (again.evaluated, again.known) == (0, 10)


def test_the_running_average_is_what_is_evaluated(setup):
    source = setup.source(VQA)
    assert source.section == "extra_state.ema"
    assert setup.source(Expert("grounding", "grounding", "vanilla")).section == "auto"
    average = open_checkpoint(source.path, source.section)
    assert torch.equal(average["encoder.layer_norm.weight"], state_of(SMALL, 3)["encoder.layer_norm.weight"])


def test_shifted_questions_are_asked_as_published(setup):
    files = setup.data / "vqa_data"
    (files / "okvqa_acc_val.tsv").write_bytes((files / "vqa_val.tsv").read_bytes())
    (files / "okvqa_trainval_ans2label.pkl").write_bytes(pickle.dumps(["seven"]))
    tokenizer = setup.tokenizer(SMALL)
    plain, shifted = (setup.dataset("vqa", split, tokenizer, SMALL, MediaCache()) for split in ("test", "knowledge"))
    assert (plain.task.repeats_prompt, shifted.task.repeats_prompt) == (True, False)
    assert (plain.answers.texts, shifted.answers.texts) == (("four", "dark red"), ("seven",))


def test_digests_of_files_are_kept_until_they_change(setup, tmp_path):
    first = setup.data_digest("vqa", "test")
    record = tmp_path / "digests.json"
    kept = json.loads(record.read_text())
    file = setup.data / "vqa_data" / "vqa_val.tsv"
    assert str(file) in kept
    before = record.stat().st_mtime_ns
    assert setup.data_digest("vqa", "test") == first
    assert record.stat().st_mtime_ns == before
    file.write_text(file.read_text().replace("red", "tan"))
    os.utime(file, ns=(1, 1))
    assert setup.data_digest("vqa", "test") != first


def test_what_was_not_published_is_told(setup):
    with pytest.raises(
        StudyError, match="no val split of vqa at setup base: choose train, test, full, knowledge, lowquality"
    ):
        setup.files("vqa", "val")
    with pytest.raises(StudyError, match=r"okvqa_acc_val.tsv is missing: see https://github.com/mshukor"):
        setup.data_digest("vqa", "knowledge")
    own = setup.source(Expert("vqa", "vqa", "longer")).path
    assert own == setup.checkpoints / "longer" / "vqa.pt"


def test_every_file_has_its_page(setup):
    expected = setup.expected([VQA], 0, [("vqa", "test"), ("caption", "novel")])
    pages = {file.name: page for file, page in expected.items()}
    assert pages["checkpoint_best.pt"] == CHECKPOINTS_PAGE
    assert pages["dict.txt"] == BPE_PAGE
    assert pages["vqa_val.tsv"] == IMAGE_DATA_PAGE
    assert pages["nocaps_val.tsv"] == DATA_PAGE
    assert page_of(setup.checkpoints / "fusing" / "vqa.pt").startswith("an expert of your own")


# -- everything that was published


def test_every_published_file_is_known(setup, tmp_path):
    wanted = STUDIES["published"].cells(Choice("base"))
    experts = experts_of(wanted)
    assert len({setup.source(expert).path for expert in experts}) == 14  # downloads
    expected = setup.expected(experts, 0, [(cell.task, cell.split) for cell in wanted])
    said = {file.relative_to(tmp_path).as_posix(): page for file, page in expected.items()}
    assert said["checkpoints/unival_video_vqa_msvd/checkpoint_best.pt"] == CHECKPOINTS_PAGE
    assert said["checkpoints/unival_s1/checkpoint15.pt"] == CHECKPOINTS_PAGE
    assert said["data/audio_data/caption_data/clotho_evaluation.tsv"] == DATA_PAGE
    assert said["data/caption_data/nocaps_outdomain_val.tsv"] == DATA_PAGE
    assert said["data/refcocog_data/refcocog_test.tsv"] == IMAGE_DATA_PAGE
    told = ["--setup", "base", "--checkpoints", str(setup.checkpoints), "--data", str(setup.data), "--dry-run"]
    done = CliRunner().invoke(app, ["study", "run", "published", str(tmp_path / "study"), *told])
    assert done.exit_code == 0, done.output
    lacking = [file for file in said if not (tmp_path / file).exists()]
    assert [file for file in lacking if file not in done.stdout] == []
    audio = {cell.point.label for cell in wanted if cell.task.startswith("audio")}
    assert "1.00 pretrained (pretrained, single)" not in audio  # which hears nothing
    assert {cell.split for cell in STUDIES["published"].cells(Choice("base", split="val"))} == {"val"}


def test_images_with_several_captions_are_asked_once(setup, tmp_path):
    folder = setup.data / "caption_data"
    folder.mkdir()
    rows = [cells("caption", row, folder) | {"image_id": image} for row, image in enumerate(("7", "9", "7", "8"))]
    text = "".join("\t".join(row[name] for name in LAYOUTS["caption"].split()) + "\n" for row in rows)
    (folder / "nocaps_outdomain_val.tsv").write_text(text)
    notes = [{"image_id": 7, "caption": "Two  digits.\n"}, {"image_id": 7, "caption": "a && b"}]
    notes += [{"image_id": 8, "caption": "a three"}]
    (folder / "nocaps_val_caption_coco_format.json").write_text(json.dumps({"annotations": notes}))
    table = setup.table("caption", "novel-out")
    assert [table[row]["uniq_id"] for row in range(len(table))] == ["7", "8"]
    assert [table[row]["caption"] for row in range(2)] == ["Two digits.&&a   b", "a three"]
    assert (table[0]["media"], table.place(1)) == (rows[0]["media"], f"{folder / 'nocaps_outdomain_val.tsv'}:4")
    before = setup.data_digest("caption", "novel-out")
    (folder / "nocaps_val_caption_coco_format.json").write_text('{"annotations": [{"image_id": "9", "caption": "b"}]}')
    assert setup.data_digest("caption", "novel-out") != before
    (folder / "nocaps_val_caption_coco_format.json").write_text('{"annotations": [{"image_id": "3", "caption": "b"}]}')
    with pytest.raises(UnivalError, match="has none of the images of"):
        setup.table("caption", "novel-out")
    (folder / "nocaps_val_caption_coco_format.json").write_text("[]")
    with pytest.raises(UnivalError, match="no captions in COCO's format"):
        setup.table("caption", "novel-out")


def test_searches_are_as_published(setup):
    found = {task: setup.generation(task) for task in ("caption", "video-caption", "audio-caption-clotho", "vqa")}
    assert [(one.beam, one.max_len_b, one.no_repeat_ngram) for one in found.values()] == [
        (5, 22, 3),
        (5, 200, 0),
        (5, 200, 0),
        (5, 200, 0),
    ]
    assert setup.shifts("vqa") == ("knowledge", "lowquality")
    assert (setup.shifts("caption"), setup.shifts("grounding")) == (("novel",), ())


def test_the_page_of_what_was_published_is_written():
    page = runpy.run_path(str(ROOT / "docs" / "write_published.py"))["page"]()
    written = (ROOT / "docs" / "published.md").read_text(encoding="utf-8")
    assert written == page, "docs/published.md is not written anew: run python docs/write_published.py"
    for task in (task for task in TASKS.values() if task.published.checkpoint):
        names = [task.published.checkpoint, *(name for files in task.published.files.values() for name in files)]
        assert [name for name in names if f"`{name}`" not in page] == []


@pytest.mark.slow
def test_everything_published_goes_the_whole_way(tmp_path, monkeypatch):
    pytest.importorskip("av")
    monkeypatch.setattr(made_rows, "RATE", 48_000)
    setup = Setup(tmp_path, tmp_path / "checkpoints", tmp_path / "data")
    for number, (task, known) in enumerate(TASKS.items()):
        if known.published.checkpoint:
            config = HEARING if known.medium == "audio" else SMALL
            config = replace(config, video=None) if known.writes == "box" else config
            write_checkpoint(setup.checkpoints / known.published.checkpoint, config, number, known)
            write_data(setup.data, task)
    write_checkpoint(setup.checkpoints / PRETRAINED_FILES["pretrained"], SMALL, 30)
    write_checkpoint(setup.checkpoints / PRETRAINED_FILES["stage-1"], replace(SMALL, video=None), 31)
    (setup.checkpoints / "BPE").mkdir()
    for name in ("encoder.json", "vocab.bpe", "dict.txt"):
        (setup.checkpoints / "BPE" / name).touch()
    wanted = STUDIES["published"].cells(Choice("base"))
    summary = run_cells(Grid("published", UnivalSubject(setup)), wanted, tmp_path, evaluate, progress=False)
    rows = read_rows(tmp_path / "rows.jsonl")
    assert summary.evaluated == len(wanted)
    assert {(task, split) for task, split in zip(rows["task"], rows["split"], strict=True)} == {
        (task, split)
        for task, known in TASKS.items()
        if known.published.checkpoint
        for split in known.published.files
        if split != "train"
    }
    quoted = rows[rows["metric"] == "Acc@0.5"]
    assert set(quoted[quoted["split"] == "test"]["n"]) == {1, 2}  # RefCOCOg, and both sets of the others
    for task, known in TASKS.items():
        if known.published.checkpoint:
            assert len(setup.table(task, "train")) == 1


# -- experts made of published ones


def test_experts_that_are_not_there_are_made_of_published_ones_or_told(setup):
    made = Expert("caption", "caption", "fusing-with-own")
    file = setup.source(made, 1).path
    assert file == setup.folder / "seed-1/experts/fusing-with-own/caption/from-average/last.safetensors"
    expected = setup.expected([made], 1, [])
    assert expected[file] == "fusing-with-own/caption: add --train, from the published experts"
    assert expected[setup.data / "caption_data/caption_stage1_train.tsv"] == IMAGE_DATA_PAGE
    own = setup.checkpoints / "fusing-with-own" / "caption.pt"
    own.parent.mkdir()
    own.touch()
    assert setup.source(made, 1).path == own
    with pytest.raises(
        StudyError, match=r"unival_caption_stage_1/checkpoint_best.pt is missing: https://github.com/ms"
    ):
        setup.train([Expert("vqa", "vqa", "ratatouille")], 0, 1)
    with pytest.raises(StudyError, match=r"longer/vqa.pt is missing: an expert of your own"):
        setup.train([Expert("vqa", "vqa", "longer")], 0, 1)


@pytest.mark.slow
def test_ratatouille_and_fusing_are_made_by_one_command(tmp_path, monkeypatch):
    setup = Setup(tmp_path, tmp_path / "checkpoints", tmp_path / "data")
    for number, task in enumerate(FAMILIES["image"]):
        config = replace(SMALL, video=None) if task == "grounding" else SMALL
        write_checkpoint(setup.checkpoints / TASKS[task].published.checkpoint, config, number, TASKS[task])
        write_data(setup.data, task, 2)
        short = {"updates": 1, "epochs": 0.0, "batch": 2, "ema": None}
        monkeypatch.setitem(TASKS, task, replace(TASKS[task], recipes={"base": short}))
    write_checkpoint(setup.checkpoints / PRETRAINED_FILE, SMALL, 30)
    monkeypatch.setattr(BaseSetup, "tokenizer", Setup.tokenizer)
    told = ["--setup", "base", "--checkpoints", str(setup.checkpoints), "--data", str(setup.data), "--limit", "1"]
    told += ["--train", "--kinds", "ratatouille,fusing,fusing-with-own", "--processes", "1"]
    (setup.checkpoints / "BPE").mkdir()
    for name in ("encoder.json", "vocab.bpe", "dict.txt"):
        (setup.checkpoints / "BPE" / name).touch()
    folder = tmp_path / "study"
    done = CliRunner().invoke(app, ["study", "run", "averaging", str(folder), *told])
    assert done.exit_code == 0, done.output
    runs = sorted(file.parent.relative_to(folder / "experts").as_posix() for file in folder.rglob("run.json"))
    assert len(runs) == 4 * 3 + 4 + 4
    fused = open_checkpoint(folder / "experts/fusing-with-own/vqa+caption+grounding+entailment/average.safetensors")
    live = [
        open_checkpoint(setup.checkpoints / TASKS[task].published.checkpoint, "model") for task in FAMILIES["image"]
    ]
    name = "encoder.layer_norm.weight"
    assert torch.allclose(fused[name].float(), sum(file[name].float() for file in live) / 4, atol=1e-3)
    name = "encoder.video_proj.weight"  # that grounding lacks
    have = [file[name].float() for file in live if name in file]
    assert torch.allclose(fused[name].float(), sum(have) / 3, atol=1e-3)
    rows = read_rows(folder / "rows.jsonl")
    assert {"ratatouille", "fusing", "fusing-with-own"} <= set(rows["experts"])
    again = CliRunner().invoke(app, ["study", "run", "averaging", str(folder), *told])
    assert "0 cells evaluated" in again.stdout
