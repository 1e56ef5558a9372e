"""Averages along a training: files found in order, weights of every kind, and the same while a model is trained."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import merge
from merge import MergeError, Policy, RunningAverage
from merge.commands import series as commands
from merge.methods.running import rates
from merge.tools.series.kinds import KINDS, SHAPES, averaging
from merge.tools.series.steps import Series, find_series
from tests import ROOT
from tests.merge.made import Carrier, assert_same, copied, weights
from tests.merge.shell import command, done

# -- the order of a run's checkpoints --------------------------------------------------------------------------------

# Names as trainers write them, then those that are taken, oldest first.
RUNS: dict[str, tuple[str, str]] = {
    "transformers": ("checkpoint-500/ checkpoint-1500/ checkpoint-1000/ runs/ model.safetensors", "500 1000 1500"),
    "lightning": ("epoch=10-step=1100.ckpt epoch=2-step=300.ckpt last.ckpt", "epoch=2-step=300 epoch=10-step=1100"),
    "lightning, scores": (
        "epoch=2-val_loss=0.25.ckpt epoch=10-val_loss=-1.2e-05.ckpt epoch=3-val_loss=1.ckpt",
        "epoch=2 epoch=3 epoch=10",
    ),
    "steps of an epoch": ("epoch=1-step=900.ckpt epoch=2-step=100.ckpt", "epoch=1 epoch=2"),
    "fairseq": ("checkpoint10.pt checkpoint9.pt checkpoint_best.pt checkpoint.best_loss_3.2.pt", "t9 t10"),
    "fairseq, updates": ("checkpoint_3_5000.pt checkpoint_3_12000.pt checkpoint_10_20000.pt", "3_5000 3_12000 10_"),
    "icefall": ("epoch-30.pt epoch-9.pt best-train-loss.pt pretrained.pt", "epoch-9 epoch-30"),
    "espnet": ("10epoch.pth 9epoch.pth latest.pth valid.acc.ave_10best.pth", "9epoch 10epoch"),
    "timm": ("checkpoint-2.pth.tar checkpoint-12.pth.tar last.pth.tar", "t-2 t-12"),
    "kohya": ("lora-000010.safetensors lora-000002.safetensors lora.safetensors", "02 10"),
    "epochs and updates": ("epoch_3_12000.pt epoch_12_48000.pt epoch_4_16000.pt", "_3_ _4_ _12_"),
    "a number that all have": ("llama-7b-step100.pt llama-7b-step20.pt", "step20 step100"),
    "a word that all have": ("final_epoch_2.pt final_epoch_1.pt", "1 2"),
    "accuracies": ("model_epoch3_acc71.pt model_epoch12_acc70.pt optimizer.pt", "h3 h12"),
}


def run_of(folder: Path, names: str) -> Path:
    for name in names.split():
        path = folder / (f"{name}model.safetensors" if name.endswith("/") else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


@pytest.mark.parametrize("names", RUNS)
def test_runs_are_read_in_the_order_of_their_steps(tmp_path: Path, names: str) -> None:
    given, wanted = RUNS[names]
    found = [path.name for path in find_series(run_of(tmp_path, given)).paths]
    assert len(found) == len(wanted.split())
    assert all(part in name for part, name in zip(wanted.split(), found, strict=True)), found


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            "checkpoint1.pt checkpoint2.pt checkpoint_1_500.pt",
            "several kinds: .*; .*: choose some, as match='checkpoint",
        ),
        ("epoch=1-step=2.ckpt epoch=1-step=2-v1.ckpt", "of several kinds"),
        ("ckpt-900k.pt ckpt-1M.pt", "of several kinds"),
        ("model_v1.pt model_v2.pt", "names do not say their order: model_v1.pt, model_v2.pt; choose"),
        ("seed1_step5.pt seed2_step5.pt", "names do not say their order"),
        ("m_1_500.pt m_2_100.pt", "names do not say their order"),
        ("epoch=1-step=2.ckpt epoch=1-step=02.ckpt", "two names say one step"),
        ("model-00001-of-00002.safetensors model-00002-of-00002.safetensors", "no checkpoints with a number"),
        ("logs/version_0/checkpoints/epoch=1.ckpt", "perhaps you mean .*/logs/version_0/checkpoints"),
    ],
)
def test_what_is_not_sure_is_refused_with_the_list(tmp_path: Path, names: str, message: str) -> None:
    with pytest.raises(MergeError, match=message):
        find_series(run_of(tmp_path, names))


def test_files_come_in_order_too_and_a_glob_chooses(tmp_path: Path) -> None:
    run = run_of(
        tmp_path, "a/step-10/m.pt a/step-9/m.pt a/last.pt epoch-1.pt epoch-2.pt checkpoint-5.pt ema_1.pt ema_2.pt"
    )
    files = [run / "a" / name for name in ("step-10/m.pt", "step-9/m.pt")]
    assert find_series(files).labels == ["step-9-m", "step-10-m"]
    with pytest.raises(MergeError, match="pass as_given=True"):
        find_series([*files, run / "a/last.pt"])
    assert find_series([*files, run / "a/last.pt"], as_given=True).paths == (*files, run / "a/last.pt")
    assert find_series(run, match="epoch-*").labels == ["epoch-1", "epoch-2"]
    assert find_series(run, match="ema_*").labels == ["ema_1", "ema_2"]
    with pytest.raises(MergeError, match="nowhere: no such file or folder"):
        find_series([files[0], run / "nowhere"])
    with pytest.raises(MergeError, match="was given twice"):
        find_series([files[0], files[0]])


def test_thinning_counts_back_from_the_last() -> None:
    found = Series(tuple(Path(f"{i}.pt") for i in range(7)))
    assert found.thinned(None, 3).labels == ["0", "3", "6"]
    assert found.thinned(2, 2).labels == ["4", "6"]
    for last, every in ((8, 1), (0, 1), (None, 0)):
        with pytest.raises(MergeError, match=r"last=|every="):
            found.thinned(last, every)


# -- weights ---------------------------------------------------------------------------------------------------------


def of_kind(kind: str, count: int, **options: Any) -> dict[str, Any]:
    return averaging(kind, Series(tuple(Path(f"{i}.pt") for i in range(count))), options)[1]


@pytest.mark.parametrize("shape", SHAPES)
def test_merged_checkpoints_are_a_decay_of_their_updates(shape: str) -> None:
    """Weights after j sum to what is left of the learning rate on the way from j to the next (arXiv 2507.17634)."""
    count, parts = 8, of_kind("wsm", 8, shape=shape)["weights"]
    assert math.isclose(sum(parts), 1)
    for j in range(1, count):
        assert math.isclose(sum(parts[j:]), SHAPES[shape](j / count), abs_tol=1e-12)
    if shape == "linear":
        assert parts == pytest.approx([1 / count] * count)


def test_kinds_take_their_own_options_alone() -> None:
    assert tuple(KINDS) == commands.KINDS
    assert tuple(SHAPES) == commands.SHAPES
    assert of_kind("wma", 3) == {"weights": [1, 2, 3]}
    assert list(rates([1, 1, 1, 1])) == [1, 1 / 2, 1 / 3, 1 / 4]
    for kind, options, message in (
        ("ema", {}, "kind ema needs decay=..."),
        ("uniform", {"decay": 0.5}, "decay=0.5 is for kind ema, not uniform"),
        ("wsm", {"shape": "round"}, "shape='round': must be one of"),
        ("median", {}, "kind='median': must be one of"),
        ("between", {"counts": [2, 1]}, "must be two rising numbers"),
    ):
        with pytest.raises(MergeError, match=message):
            of_kind(kind, 2, **options)


# -- from files, and while a model is trained ------------------------------------------------------------------------

STATES = [weights(seed) for seed in range(6)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    for step, state in enumerate(STATES, 8):
        merge.save_checkpoint(state, folder / f"step={step}.pt")
    return folder


WAYS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "ema": {"kind": "ema", "decay": 0.7},
    "wma": {"kind": "wma"},
    "latest": {"last": 4},
    "latest ema": {"kind": "ema", "decay": 0.7, "last": 4},
    "latest wsm": {"kind": "wsm", "shape": "cosine", "last": 4},
}


def averaged(states: Sequence[Any], **how: Any) -> RunningAverage:
    average = RunningAverage(states[0], **how)
    for state in states:
        average.update(state)
    return average


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_files_and_a_training_come_to_the_same_bits(tmp_path: Path, way: str, dtype: torch.dtype) -> None:
    states = [weights(seed, dtype) for seed in range(6)]
    for step, state in enumerate(states, 8):
        merge.save_checkpoint(state, tmp_path / f"step={step}.pt")
    out = merge.run(merge.series(tmp_path, **WAYS[way]), tmp_path / "out.pt")
    average = averaged([Carrier(state) for state in states], **WAYS[way])
    made = average.state_dict()
    assert_same({name: made[name] for name in STATES[0]}, merge.load_checkpoint(out))
    assert made["encoder.embed.weight"].data_ptr() == made["decoder.output.weight"].data_ptr()


def test_equal_checkpoints_are_their_average_to_the_bit(tmp_path: Path) -> None:
    state = {"w": torch.tensor([-0.0, math.inf, -math.inf, 0.1, 1e-40, 3e38]), "v": torch.randn(5, dtype=torch.float64)}
    policy = Policy(allow_nonfinite=True)
    for way in WAYS.values():
        assert_same(averaged([copied(state) for _ in range(7)], policy=policy, **way).state_dict(), state)
    for step in range(7):
        merge.save_checkpoint(state, tmp_path / f"step={step}.safetensors")
    out = merge.run(merge.series(tmp_path, kind="wma", policy=policy), tmp_path / "out.safetensors")
    assert_same(merge.load_checkpoint(out), state)


def test_a_uniform_series_is_the_average_within_a_rounding(run: Path, tmp_path: Path) -> None:
    one = merge.load_checkpoint(merge.run(merge.series(run), tmp_path / "uniform.pt"))
    other = merge.average(STATES)
    for name, value in other.items():
        torch.testing.assert_close(one[name], value, rtol=3e-7, atol=3e-7)
    wide = merge.average(STATES, policy=Policy(compute_dtype="float64"))
    assert_same({name: one[name] for name in wide}, wide)


def test_a_trained_model_takes_its_average_and_a_file_holds_it(tmp_path: Path) -> None:
    model = Carrier(STATES[0])
    average = averaged(STATES[:3], kind="ema", decay=0.5)
    again = copy.deepcopy(average)
    average.copy_to(model)
    assert_same(model.now(), {name: average.state_dict()[name] for name in model.now()})
    average.update(STATES[3])
    assert average.save(tmp_path / "a.pt") == tmp_path / "a.pt"
    assert_same(merge.load_checkpoint(tmp_path / "a.pt"), average.state_dict())
    assert again.count == 3
    assert repr(average) == "RunningAverage(ema: 4 updates)"


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    model = nn.Linear(3, 2)

    def train(model: nn.Linear, step: int) -> None:
        nn.init.normal_(model.weight)
        merge.save_checkpoint(model, f"run/step={step}.safetensors")

    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs/series.md").read_text(encoding="utf-8"), re.DOTALL):
        exec(block, {"merge": merge, "model": model, "train": train})
    same = merge.load_checkpoint("same.safetensors")
    assert_same(merge.load_checkpoint("average.safetensors"), same)
    assert torch.equal(model.weight, same["weight"])


def test_updates_that_do_not_fit_change_nothing() -> None:
    average = RunningAverage(kind="uniform")
    with pytest.raises(MergeError, match="nothing was averaged yet"):
        average.state_dict()
    average.update(STATES[0])
    before = average.state_dict()
    for change, message in (
        ({"new": torch.zeros(1)}, "other tensors than before: new"),
        ({"decoder.scale": torch.zeros(2)}, r"decoder.scale is float32 \[2\] in the model and was float32 \[\] before"),
        ({"encoder.positions": torch.zeros(2, 3, dtype=torch.int64)}, "encoder.positions is int64 and has changed"),
    ):
        with pytest.raises(MergeError, match=message):
            average.update({**STATES[1], **change})
    assert average.count == 1
    assert_same(average.state_dict(), before)
    with pytest.raises(MergeError, match="do not have the same names: decoder"):
        average.copy_to(nn.Linear(1, 1, bias=False))
    for how, message in (
        ({"kind": "wsm"}, "needs last="),
        ({"kind": "between"}, "is for files"),
        ({"last": 0}, "last=0"),
    ):
        with pytest.raises(MergeError, match=message):
            RunningAverage(**how)  # type: ignore[arg-type]
    bad = averaged([{"w": torch.tensor([1.0])}, {"w": torch.tensor([math.inf])}])
    with pytest.raises(MergeError, match="w: 1 infinite or NaN values"):
        bad.state_dict()


def test_between_two_cumulative_averages(tmp_path: Path) -> None:
    """As icefall does: the mean of the steps after the first average, from two means of all steps so far."""
    steps = [{"w": torch.randn(50, dtype=torch.float64)} for _ in range(10)]
    for count in (4, 10):
        mean = averaged(steps[:count]).state_dict()
        torch.save(
            {"model": steps[count - 1], "model_avg": mean, "batch_idx_train": count}, tmp_path / f"epoch-{count}.pt"
        )
    wanted = averaged(steps[4:]).state_dict()
    recipe = merge.series(tmp_path, kind="between")
    assert recipe.parameters == {"weights": [-4, 10]}
    made = merge.load_checkpoint(merge.run(recipe, tmp_path / "out.safetensors"))
    torch.testing.assert_close(made["w"], wanted["w"])
    files = [str(tmp_path / f"epoch-{count}.pt") for count in (10, 4)]
    done("series", *files, "--kind", "between", "--counts", "4,10", "-o", tmp_path / "two.safetensors")
    assert_same(merge.load_checkpoint(tmp_path / "two.safetensors"), made)


# -- on the command line ---------------------------------------------------------------------------------------------


def test_a_run_on_the_command_line(run: Path, tmp_path: Path) -> None:
    merge.save_checkpoint(STATES[5], run / "last.pt", overwrite=True)
    out = tmp_path / "out.pt"
    told = done("series", run, "--last", 3, "--kind", "wma", "-o", out)
    assert told.err.splitlines()[:2] == [
        "note: in order: step=11, step=12, step=13",
        "note: left out: last.pt; to have them, name all files in order, --as-given",
    ]
    assert told.said == f"{out}: series: 0.1667 step=11 + 0.3333 step=12 + 0.5000 step=13\n"
    done("run", f"{out}.recipe.json", "-o", tmp_path / "again.pt")
    assert (tmp_path / "again.pt").read_bytes() == out.read_bytes()
    failed = command("series", run, "--kind", "ema", "-o", tmp_path / "no.pt")
    assert (failed.code, failed.err) == (2, "error: kind ema needs --decay\n")
    assert not (tmp_path / "no.pt").exists()


def test_many_inputs_are_read_in_smaller_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of all inputs together are bounded, and cut no element: the result is the same."""
    from merge.engine import stream

    for step in range(5):
        merge.save_checkpoint({"w": torch.full((1000,), float(step))}, tmp_path / f"step={step}.safetensors")
    monkeypatch.setattr(stream, "TOGETHER", 5 * 400)
    made = merge.load_checkpoint(merge.run(merge.series(tmp_path), tmp_path / "out.safetensors"))
    assert made["w"].unique().tolist() == [2.0]


# -- A + scale * (B - C) ---------------------------------------------------------------------------------------------


def test_add_difference_keeps_bits_where_it_can(tmp_path: Path) -> None:
    a, b, c = (weights(seed) for seed in range(3))
    for name, state in {"a": a, "b": b, "c": c}.items():
        state["encoder.image.bn.num_batches_tracked"] = torch.tensor(7)
        merge.save_checkpoint(state, tmp_path / f"{name}.pt")
    a["decoder.scale"].fill_(-0.0)
    assert_same(merge.merge_with("add-difference", [a, b, c], scale=0.0), a)
    assert_same(merge.merge_with("add-difference", [a, b, copied(b)], scale=-0.5), a)
    assert_same(merge.merge_with("add-difference", [c, b, copied(c)], scale=1.0), b)
    files = [tmp_path / f"{name}.pt" for name in "abc"]
    told = done("add-difference", *files, "--scales", "0,1/2", "-o", tmp_path / "points")
    assert told.said == f"{tmp_path / 'points'}: 2 checkpoints\n"
    names = sorted(path.name for path in (tmp_path / "points").glob("*.pt"))
    assert names == ["1.00-a_0.00-b_-0.00-c.pt", "1.00-a_0.50-b_-0.50-c.pt"]
    done("add-difference", *files, "--scale", "50%", "-o", tmp_path / "half.pt")
    half = merge.load_checkpoint(tmp_path / "half.pt")
    assert_same(merge.load_checkpoint(tmp_path / "points" / names[1]), half)
    assert command("add-difference", *files, "--scale", 1, "--scales", "1", "-o", "x").code == 2
