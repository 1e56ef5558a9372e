"""`unival-merge study`: from two made experts to rows, the best ratio and its weights."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from typer.testing import CliRunner

import merge
from experiments.commands import app
from experiments.errors import StudyError
from experiments.grid import engines
from experiments.grid.rows import Row, append_row
from experiments.grid.rows import read_rows as rows_of
from experiments.statistics.selection import Best, best_path, save_best
from experiments.study.points import Expert
from experiments.unival.setups import PocketSetup
from experiments.unival.studies import STUDIES
from tests.experiments.made_pocket import TINY, copied


@pytest.fixture(scope="module")
def own(home, tmp_path_factory):
    """A folder to write rows into."""
    return copied(home, tmp_path_factory.mktemp("cli") / "home")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(STUDIES, "tiny", TINY)


def call(*arguments):
    done = CliRunner().invoke(app, ["study", *[str(argument) for argument in arguments]])
    if done.exit_code == 2:
        raise StudyError(done.stderr)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_studies_are_listed():
    lines = call("list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(STUDIES)
    assert "arXiv 2307.16184" in lines[0]


def test_from_a_dry_run_to_the_best_weights(own):
    tiny = ("run", "tiny", own, "--processes", "1", "--limit", "4", "--split")
    dry = call(*tiny, "val", "--dry-run").stdout
    assert "study tiny: 8 cells for each seed of 0 (4 of vqa, 4 of entailment)" in dry
    assert "8 cells to evaluate at 4 points" in dry
    assert "seed 0: 0.50 vqa + 0.50 entailment (vanilla, interpolate): vqa val, entailment val" in dry
    assert not (own / "rows.jsonl").exists()

    assert "8 cells evaluated" in call(*tiny, "test").stdout
    with pytest.raises(StudyError, match="no merged points on val"):
        call("best", "tiny", own)
    rows = rows_of(own / "rows.jsonl")
    assert call(*tiny, "val").stdout.startswith(f"{own / 'rows.jsonl'}: 8 cells evaluated")
    assert "0 cells to evaluate at 0 points" in call(*tiny, "val", "--dry-run").stdout
    assert rows_of(own / "rows.jsonl")["key"].tolist()[: len(rows)] == rows["key"].tolist()


def test_methods_with_a_base_start_from_the_pretrained_model(home, tmp_path):
    folder = copied(home, tmp_path / "home")
    run = ("run", "tiny", folder, "--processes", "1", "--limit", "1", "--method", "ties:density=0.1,0.3")
    assert "study tiny: 10 cells" in call(*run, "--dry-run").stdout
    assert "12 cells evaluated" in call(*run, "--method", "arcee-fusion").stdout
    rows = rows_of(folder / "rows.jsonl")
    rows = rows[rows["metric"].str.contains("accuracy")]
    ties = rows[rows["method"] == "ties"]
    assert [row["density"] for row in ties["parameters"]] == [0.1, 0.1, 0.3, 0.3]
    assert set(ties["inputs"].iloc[0]) == {"vqa", "entailment", "pretrained"}
    assert [set(row) for row in rows[rows["method"] == "arcee-fusion"]["shares"]] == [{"vqa"}, {"entailment"}]
    assert "2 cells evaluated" in call(*run[:-1], "slerp").stdout


def test_the_best_ratio_is_printed(tmp_path):
    job = {"study": "tiny", "experts": "vanilla", "batchnorm": "average", "metric": "accuracy", "n": 9, "seconds": 1.0}
    job |= {"seed": 0, "versions": {}, "inputs": {}, "data": ""}
    for number, (share, task, split) in enumerate(product((0.0, 0.5, 1.0), TINY.experts, ("val", "test"))):
        shares = {name: value for name, value in (("vqa", 1 - share), ("entailment", share)) if value}
        value = 0.8 if share == 0.5 else 0.5
        method = "interpolate" if share == 0.5 else "single"
        scores = {"value": value, "lo": value - 0.1, "hi": value + 0.1, "key": str(number)}
        row = Row(shares=shares, method=method, task=task, split=split, **scores, **job)
        append_row(tmp_path / "rows.jsonl", row)
        if method == "interpolate":  # a better point of another study
            other = replace(
                row, study="other", shares={"vqa": 0.1, "entailment": 0.9}, value=1.0, key=f"other {number}"
            )
            append_row(tmp_path / "rows.jsonl", other)
    assert call("best", "tiny", tmp_path).stdout == (
        "vqa+entailment, vanilla: 0.50 vqa + 0.50 entailment; joint 1.6000 on val, 1.6000 on test; "
        "vqa accuracy 80.00 [70.00, 90.00], entailment accuracy 80.00 [70.00, 90.00]\n"
    )
    with pytest.raises(StudyError, match="has nothing of"):
        call("best", "tiny", tmp_path, "--only", "vqa+caption")


def test_what_rows_say_is_one_line(tmp_path, monkeypatch):
    """Colours, line ends and marks that turn the order are shown as escapes."""
    best = Best(("a\x1b[2J", "b"), "van\nilla", "from:\u202ea", {"a\x1b[2J": 1.0}, 1.0, 1.0, {("t", "m\r"): (1, 1, 1)})
    monkeypatch.setattr("experiments.commands.study._best", lambda *_, **__: [best])
    told = call("best", "tiny", tmp_path).stdout
    assert told.startswith(r"a\x1b[2J+b, van\nilla, BatchNorm from:\u202ea: 1.00 a\x1b[2J; joint 1.0000 on val, 1.0000")
    assert told.endswith("t m\\r 100.00 [100.00, 100.00]\n")
    assert told.count("\n") == 1


def test_one_run_for_several_seeds_and_parts_of_a_study(home, tmp_path):
    with pytest.raises(StudyError, match=r"--seed one: give numbers, as 0 or 0,1,2"):
        call("run", "tiny", home, "--seed", "one")
    with pytest.raises(StudyError, match=r"tiny lacks \S+seed-3/experts/vanilla/vqa/last.safetensors"):
        call("run", "tiny", home, "--seed", "0,3", "--only", "entailment+vqa")
    with pytest.raises(StudyError, match="has no pocket models"):
        call("run", "tiny", tmp_path)
    with pytest.raises(StudyError, match="'slurm' is not one of local, ray"):
        call("run", "tiny", home, "--engine", "slurm")


def test_the_best_is_not_chosen_on_test(home):
    with pytest.raises(StudyError, match="choose it with --split val"):
        call("run", "tiny", home, "--save", "best")
    with pytest.raises(StudyError, match="'all' is not one of best"):
        call("run", "tiny", home, "--split", "val", "--save", "all")


def test_the_best_weights_are_the_merged_ones(home, tmp_path):
    experts = {name: Expert(name, name, "vanilla") for name in TINY.experts}
    best = Best(tuple(experts), "vanilla", "from:vqa", {"vqa": 0.25, "entailment": 0.75}, 1.0, 1.0, {})
    inputs = {name: PocketSetup(home).source(expert, 0) for name, expert in experts.items()}
    wanted = best_path(best, inputs, tmp_path, study="tiny", seed=0)
    file = save_best(best, inputs, wanted, missing="keep-first")
    assert file == wanted == tmp_path / "best" / "tiny-vqa+entailment-vanilla-from-vqa-seed-0.safetensors"
    saved = merge.load_checkpoint(file)
    ends = [merge.load_checkpoint(item.path) for item in inputs.values()]
    merged = merge.interpolate(*ends, 0.75)
    weights = [name for name in merged if "running" not in name]
    assert all(torch.equal(saved[name], merged[name]) for name in weights)
    assert all(torch.equal(saved[name], ends[0][name]) for name in merged if "running" in name)


@pytest.mark.parametrize(
    ("name", "ending"), [("a.pth.tar", ".pth.tar"), ("v1.5.model", ".pt"), ("a.BIN", ".BIN"), ("v1.5", ".pt")]
)
def test_the_best_weights_have_a_suffix_of_their_format(tmp_path, name, ending):
    """Whatever the first expert's file is called, and by what it holds."""
    torch.save({"w": torch.zeros(2)}, tmp_path / name)
    merge.save_checkpoint({"w": torch.ones(2)}, tmp_path / "b.safetensors")
    inputs = {one: merge.Input(one, tmp_path / file) for one, file in (("a", name), ("b", "b.safetensors"))}
    best = Best(("a", "b"), "vanilla", "average", {"a": 0.5, "b": 0.5}, 1.0, 1.0, {})
    file = save_best(best, inputs, best_path(best, inputs, tmp_path, study="tiny", seed=0))
    assert file.name == f"tiny-a+b-vanilla-seed-0{ending}"
    assert merge.load_checkpoint(file)["w"].tolist() == [0.5, 0.5]


def test_an_interrupt_ends_with_130_and_says_how_to_go_on(home, monkeypatch):
    def interrupted(processes, address):
        def engine(groups, subject, device):
            raise KeyboardInterrupt
            yield

        return engine

    monkeypatch.setitem(engines.ENGINES, "local", interrupted)
    done = call("run", "tiny", home, "--limit", "1")
    assert done.exit_code == 130
    assert "the same command goes on" in done.stderr


def test_setup_base_names_every_missing_file_and_its_page(tmp_path):
    folders = ("--checkpoints", tmp_path / "ck", "--data", tmp_path / "data")
    asked = ("run", "interpolation", tmp_path, "--setup", "base", "--only", "vqa+caption", "--kinds", "vanilla")
    dry = call(*asked, *folders, "--dry-run").stdout
    line = next(line for line in dry.splitlines() if "unival_vqa/checkpoint_best.pt" in line)
    assert line.startswith("missing")
    assert line.endswith("(https://github.com/mshukor/UnIVAL/blob/main/checkpoints.md)")
    for name in ("okvqa_acc_val.tsv", "nocaps_val.tsv", "trainval_ans2label.pkl", "BPE/dict.txt"):
        assert name in dry
    assert "GB" in dry
    assert "GPU hours" in dry
    with pytest.raises(StudyError, match=r"lacks \S+checkpoint1.pt .* and \d+ more files: --dry-run lists"):
        call(*asked, *folders)
    with pytest.raises(StudyError, match="needs --checkpoints and --data"):
        call(*asked)
    with pytest.raises(StudyError, match=r"checkpoint1.pt is missing: https"):
        call(*asked, *folders, "--train")
