"""Setup base: where files are looked for, and the whole way through made files of the published layout."""

import json
import os
import pickle

import pytest
import torch

from experiments.errors import StudyError
from experiments.grid.engines.local import evaluate
from experiments.grid.grid import Grid, run_cells
from experiments.grid.rows import read_rows
from experiments.study.points import Expert
from experiments.unival.published import (
    BPE_PAGE,
    CHECKPOINTS_PAGE,
    DATA_PAGE,
    IMAGE_DATA_PAGE,
    PRETRAINED_FILE,
    BaseSetup,
    page_of,
)
from experiments.unival.studies import Choice, MixtureStudy
from experiments.unival.subject import UnivalSubject
from merge import open_checkpoint
from tests.unival_core.made_rows import LAYOUTS, cells
from unival_core import TASKS
from unival_core.config import CONFIGS, ResNetConfig, UnivalConfig, replace
from unival_core.data.media_cache import MediaCache
from unival_core.model import UnivalModel
from unival_core.vocabulary import Tokenizer

# The published vocabulary and tables, everything else narrow.
SMALL = UnivalConfig(
    width=16,
    heads=2,
    ffn=24,
    encoder_layers=1,
    decoder_layers=1,
    image=ResNetConfig(depths=(1, 1, 1), planes=(4, 4, 8), stem=4),
    video=ResNetConfig(depths=(1, 1), planes=(4, 8), expansion=2, groups=2, stem=4, kernel=3),
)
WORDS = ["which digit is red? four dark red", 'which region does the text " the red seven " describe?']
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
        StudyError, match="no val split of vqa at setup base: choose train, test, knowledge, lowquality"
    ):
        setup.files("vqa", "val")
    with pytest.raises(StudyError, match=r"okvqa_acc_val.tsv is missing: see https://github.com/mshukor"):
        setup.data_digest("vqa", "knowledge")
    own = setup.source(Expert("vqa", "vqa", "ratatouille")).path
    assert own == setup.checkpoints / "ratatouille" / "vqa.pt"


def test_every_file_has_its_page(setup):
    expected = setup.expected([VQA], 0, [("vqa", "test"), ("caption", "novel")])
    pages = {file.name: page for file, page in expected.items()}
    assert pages["checkpoint_best.pt"] == CHECKPOINTS_PAGE
    assert pages["dict.txt"] == BPE_PAGE
    assert pages["vqa_val.tsv"] == IMAGE_DATA_PAGE
    assert pages["nocaps_val.tsv"] == DATA_PAGE
    assert page_of(setup.checkpoints / "fusing" / "vqa.pt").startswith("an expert of your own")
