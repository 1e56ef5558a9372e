"""Weights are found at any depth of a torch file; what a merge did not touch does not go stale in the output."""

from __future__ import annotations

from argparse import Namespace
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import merge
from merge import MergeError, open_checkpoint
from tests.merge.shell import command

W = {"w": torch.ones(3, 4), "b": torch.ones(3)}
E = {name: 9 * value for name, value in W.items()}
ADAM = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(3, 4)}}, "param_groups": [{"lr": 0.1}]}


def saved(path: Path, tree: Any, **options: Any) -> Path:
    torch.save(tree, path, **options)
    return path


def step_into(tree: Any, way: str) -> Any:
    for key in way.split("."):
        tree = tree[int(key)] if isinstance(tree, (list, tuple)) else tree[key]
    return tree


FOUND: dict[str, tuple[Any, str]] = {
    "nnunet": ({"network_weights": W, "optimizer_state": ADAM, "current_epoch": 3}, "network_weights"),
    "whisper": ({"dims": {"n_mels": 80}, "model_state_dict": W}, "model_state_dict"),
    "nested": ({"model": {"args": {"a": 1}, "state_dict": W}, "optimizer": ADAM}, "model.state_dict"),
    "state": ({"state": {"model": OrderedDict(W), "optimizer": ADAM}}, "state.model"),
    "lightning": (
        {"state_dict": W, "optimizer_states": [ADAM], "callbacks": {"best": {"score": torch.tensor(0.5)}}},
        "state_dict",
    ),
    "list": ([W, ADAM], "0"),
    "tuple": ({"models": (W, 5)}, "models.0"),
    "default dictionary": ({"net": defaultdict(int, W)}, "net"),
    "tables beside": ({"net": W, "stats": {"mean": torch.zeros(3), "std": torch.ones(3)}}, "net"),
    "far smaller": ({"net": {"w": torch.ones(100, 100)}, "head": {"h": torch.ones(3, 3)}}, "net"),
    "flat with a table": ({**W, "stats": {"mean": torch.zeros(3)}}, "."),
    "dots in keys": ({"my.net": {"v1.0": W}}, "my.net.v1.0"),
    "optimizer with names": ({"net": W, "optim": {"state": {"w": {"exp_avg": torch.ones(3, 4)}}}}, "net"),
    "moments alone": ({"net": W, "history": {"a": {"exp_avg": torch.ones(3, 4), "step": torch.ones(())}}}, "net"),
}


@pytest.mark.parametrize("kind", FOUND)
@pytest.mark.parametrize("legacy", [False, True])
def test_one_is_taken(tmp_path: Path, kind: str, legacy: bool) -> None:
    tree, section = FOUND[kind]
    path = saved(tmp_path / "c.pt", tree, _use_new_zipfile_serialization=not legacy)
    assert open_checkpoint(path).section == section
    assert torch.equal(open_checkpoint(path, section)["w"], open_checkpoint(path)["w"])


SEVERAL: dict[str, tuple[Any, str]] = {
    "esrgan": ({"params": W, "params_ema": E}, r"params \(2 tensors\), params_ema \(2 tensors\); .* use params_ema"),
    "stylegan": (
        {"g": W, "d": {"x": torch.ones(2, 2)}, "g_ema": E},
        r"g \(2 .*d \(1 tensor\), g_ema.*sample with g_ema; choose one, as section='g_ema'",
    ),
    "published": (
        {"model": W, "extra_state": {"ema": E}},
        r"published VQA experts are evaluated with extra_state\.ema",
    ),
    "a model called opt": ({"visual": W, "opt_model": E}, r"visual \(2 tensors\), opt_model \(2 tensors\)"),
    "many": ({f"m{i}": W | {"i": torch.tensor(i)} for i in range(30)}, r"m19 \(3 tensors\) and 10 more"),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_several_are_listed(tmp_path: Path, kind: str) -> None:
    tree, told = SEVERAL[kind]
    with pytest.raises(MergeError, match=r"several sections with weights: .*" + told):
        open_checkpoint(saved(tmp_path / "c.pt", tree))


def test_ways_that_would_be_called_alike(tmp_path: Path) -> None:
    path = saved(tmp_path / "c.pt", {"a.b": W, "a": {"b": E}})
    assert open_checkpoint(path, r"a\.b")["b"].tolist() == [1, 1, 1]
    assert open_checkpoint(path, "a.b")["b"].tolist() == [9, 9, 9]


NONE: dict[str, tuple[Any, str]] = {
    "an optimizer": (ADAM, "only the state of a training"),
    "zero3": ({"module": {"w": torch.empty(0)}, "ds_version": "0.1"}, "placeholders of size 0 .*zero_to_fp32"),
    "zero shard": ({"optimizer_state_dict": {"zero_stage": 2}, "ds_version": "0.1"}, "zero_to_fp32"),
    "numbers as names": (
        {"model": {0: torch.ones(1)}},
        "1 tensors of section 'model' have no text for a name, but int",
    ),
}


@pytest.mark.parametrize("kind", NONE)
def test_no_weights(tmp_path: Path, kind: str) -> None:
    tree, told = NONE[kind]
    with pytest.raises(MergeError, match=told):
        open_checkpoint(saved(tmp_path / "c.pt", tree))


def merged(folder: Path, tree: Any, section: str) -> tuple[Any, list[str]]:
    """What comes out when a file is averaged with itself, and what is said."""
    path = saved(folder / "a.pt", tree)
    shown = command("average", path, path, "--name", "a", "--name", "b", "--section", section, "-o", folder / "o.pt")
    assert shown.code == 0, shown
    told = [line.removeprefix("note: ") for line in shown.err.splitlines() if "left out of" not in line]
    return torch.load(folder / "o.pt", weights_only=False), told


STALE: dict[str, tuple[Any, str, dict[str, str]]] = {
    "average": ({"state_dict": W, "ema_state_dict": E, "epoch": 3}, "state_dict", {"ema_state_dict": "weights"}),
    "not the average": ({"model": W, "ema": E}, "ema", {"model": "weights"}),
    "prefixed": ({"net": W, "teacher": {f"module.{k}": v for k, v in E.items()}}, "net", {"teacher": "weights"}),
    "another network": ({"g": W, "d": {"x": torch.ones(5, 5)}}, "g", {"d": "weights"}),
    "shadows": ({"net": W, "ema": {"decay": 0.9, "shadow_params": [*E.values()]}}, "net", {"ema.shadow_params": "w"}),
    "optimizers": ({"net": W, "optimizer_states": [ADAM]}, "net", {"optimizer_states": "the state of a training"}),
    "an optimizer deep": ({"net": W, "t": {"optim_g": ADAM, "k": 1}}, "net", {"t.optim_g": "the state of a training"}),
}
KEPT = {"epoch": 3, "lr": 0.1, "args": Namespace(a=1), "stats": {"mean": torch.zeros(3)}, "rng_state": torch.ones(9)}


@pytest.mark.parametrize("kind", STALE)
def test_nothing_goes_stale(tmp_path: Path, kind: str) -> None:
    tree, section, gone = STALE[kind]
    out, told = merged(tmp_path, {**tree, **KEPT}, section)
    assert len(told) == len(gone)
    for line, (way, what) in zip(told, gone.items(), strict=True):
        assert line.startswith(f"left out {way}: {what}")
        parent, _, key = way.rpartition(".")
        assert key not in (step_into(out, parent) if parent else out)
    assert set(KEPT) <= set(out)
    assert out["stats"]["mean"].tolist() == [0, 0, 0]
    assert torch.equal(step_into(out, section)["w"], step_into(tree, section)["w"])


def test_an_empty_optimizer_stays(tmp_path: Path) -> None:
    out, told = merged(tmp_path, {"net": W, "optimizer": {"state": {}, "param_groups": []}}, "net")
    assert out["optimizer"] == {"state": {}, "param_groups": []}
    assert told == []


def test_a_section_for_all_is_the_file_itself_for_a_plain_one(tmp_path: Path) -> None:
    plain, training = saved(tmp_path / "plain.pt", W), saved(tmp_path / "tuned.pt", {"net": W, "net_ema": E})
    out = tmp_path / "o.safetensors"
    shown = command("interpolate", plain, training, "--ratio", "0.5", "--section", "net_ema", "-o", out)
    assert "note: plain is a state dict without sections: taken whole, not net_ema" in shown.err
    assert open_checkpoint(out)["b"].tolist() == [5, 5, 5]
    wrong = command("average", plain, plain, "--name", "a", "--name", "b", "--section", "ema", "-o", tmp_path / "p.pt")
    assert (wrong.code, "has no section 'ema'" in wrong.err) == (2, True)
    one = command("average", plain, training, "--section", "plain=net", "-o", tmp_path / "p.pt")
    assert (one.code, "has no section 'net'" in one.err) == (2, True)


def test_buffers_and_parameters_come_back_as_such(tmp_path: Path) -> None:
    tree: dict[str, Tensor] = {"w": torch.nn.Parameter(torch.ones(2, 2)), "b": torch.nn.Buffer(torch.ones(2))}
    tree["marked"] = torch.ones(2)
    tree["marked"].note = "mine"  # type: ignore[attr-defined]
    path = saved(tmp_path / "a.pt", {"net": tree})
    out = torch.load(merge.save_checkpoint(path, tmp_path / "o.pt", like=path), weights_only=False)["net"]
    assert type(out["w"]) is torch.nn.Parameter
    assert (vars(out["b"]), vars(out["marked"])) == (vars(tree["b"]), {"note": "mine"})
