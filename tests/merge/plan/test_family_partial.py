"""eP-ALM: files that hold only what was trained, a hundredth of the model; what a file lacks is as in the base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import merge
from merge import MergeError, Policy, load_checkpoint, run
from tests.merge.handmade import random_tensor
from tests.merge.made import assert_same, in_memory, ordered_as
from tests.merge.shell import command, done
from tests.merge.ways import QUICK, merged_every_way, recipe_of

TRUNK = ("model_text.layers.0.fc1.weight", "model_vision.blocks.0.norm.bias")
CONNECTOR = "connector.0.weight"
PROMPT = "prompt_module.prompt"
ADAPTER = "model_text.layers.0.adapter.weight"


def tensor(seed: int, *shape: int) -> Tensor:
    return random_tensor(shape, torch.float32, seed)


def write(path: Path, seed: int, *names: str) -> Path:
    """A training file with these tensors alone; the prompt stands under two names with one storage."""
    held = {name: tensor(seed + 7 * i, 2, 3) for i, name in enumerate(names)}
    if PROMPT in held:
        held["module.prompt"] = held[PROMPT]
    torch.save({"model": held, "epoch": 3, "best_valid": 0.5, "optimizer": {"state": {}}}, path)
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A base with everything, one expert with connector and prompt, one with connector and adapter."""
    return {
        "base": write(tmp_path / "base.pt", 0, *TRUNK, CONNECTOR, PROMPT, ADAPTER),
        "a": write(tmp_path / "a.pt", 100, CONNECTOR, PROMPT),
        "b": write(tmp_path / "b.pt", 200, CONNECTOR, ADAPTER),
    }


def state(path: Path) -> dict[str, Tensor]:
    return load_checkpoint(path)


def test_equal_sets_are_merged_without_a_base(tmp_path: Path) -> None:
    pair = {name: write(tmp_path / f"{name}.pt", seed, CONNECTOR, PROMPT) for name, seed in (("a", 1), ("b", 2))}
    out = tmp_path / "out.pt"
    made = merged_every_way(recipe_of("interpolate", pair, {"ratio": 0.25}, Policy()), out)
    assert torch.equal(made[PROMPT], torch.lerp(state(pair["a"])[PROMPT], state(pair["b"])[PROMPT], 0.25))
    after = torch.load(out, weights_only=True)
    assert list(after) == ["model", "epoch", "best_valid", "optimizer"]
    assert list(after["model"]) == [CONNECTOR, PROMPT, "module.prompt"]
    assert after["model"][PROMPT].data_ptr() == after["model"]["module.prompt"].data_ptr()


def test_a_missing_name_is_a_task_vector_of_zero(files: dict[str, Path], tmp_path: Path) -> None:
    policy = Policy(missing="zero-delta")
    parameters = {"scale": 1.0, "weights": [0.25, 0.75]}
    made = merged_every_way(recipe_of("task-arithmetic", files, parameters, policy), tmp_path / "out.pt")
    full = state(files["base"])
    completed = [{**full, **state(files[name])} for name in "ab"]
    wanted = in_memory("task-arithmetic", dict(zip("ab", completed, strict=True)), parameters, Policy(), full)
    assert_same(made, ordered_as(wanted, made))
    for name in TRUNK:
        assert torch.equal(made[name], full[name])
    average = merge.average(completed, weights=[0.25, 0.75])  # weights of sum 1: the average relative to the base
    for name, value in made.items():
        torch.testing.assert_close(value, average[name])


@pytest.mark.parametrize("method", ["ties", "dare-linear", "breadcrumbs"])
def test_sparse_methods_see_a_vector_of_zeros(method: str, files: dict[str, Path], tmp_path: Path) -> None:
    recipe = recipe_of(method, files, {"density": 0.5}, Policy(missing="zero-delta"))
    made = merged_every_way(recipe, tmp_path / "out.pt")
    full = state(files["base"])
    completed = {name: {**full, **state(files[name])} for name in "ab"}
    wanted = in_memory(method, completed, {"density": 0.5}, Policy(), full)
    assert_same(made, ordered_as(wanted, made))


def test_the_union_of_trained_sets(files: dict[str, Path], tmp_path: Path) -> None:
    pair = {name: files[name] for name in "ab"}
    made = merged_every_way(recipe_of("interpolate", pair, {"ratio": 0.25}, Policy(missing="union")), tmp_path / "o.pt")
    a, b = state(files["a"]), state(files["b"])
    assert set(made) == {CONNECTOR, PROMPT, "module.prompt", ADAPTER}
    assert torch.equal(made[CONNECTOR], torch.lerp(a[CONNECTOR], b[CONNECTOR], 0.25))
    assert torch.equal(made[PROMPT], a[PROMPT])
    assert torch.equal(made[ADAPTER], b[ADAPTER])


def test_shares_of_a_union_are_scaled_to_those_that_have_the_name(files: dict[str, Path], tmp_path: Path) -> None:
    three = {"a": files["a"], "b": files["b"], "c": write(tmp_path / "c.pt", 300, CONNECTOR, ADAPTER)}
    policy = Policy(missing="union")
    recipe = recipe_of("average", three, {"weights": [0.5, 0.1, 0.4]}, policy)
    made = merged_every_way(recipe, tmp_path / "out.pt")
    states = {name: state(path) for name, path in three.items()}
    wanted = merge.average([{ADAPTER: states[name][ADAPTER]} for name in "bc"], weights=[0.2, 0.8])
    assert torch.equal(made[ADAPTER], wanted[ADAPTER])
    at_end = merge.average(states, weights=[1.0, 0.0, 0.0], policy=policy)  # no share at all: equal ones
    assert torch.equal(at_end[ADAPTER], torch.lerp(states["b"][ADAPTER], states["c"][ADAPTER], 0.5))
    assert torch.equal(at_end[CONNECTOR], states["a"][CONNECTOR])


def test_what_the_base_lacks_has_no_task_vector(files: dict[str, Path], tmp_path: Path) -> None:
    short = {**files, "base": write(tmp_path / "short.pt", 0, *TRUNK, CONNECTOR, PROMPT)}
    with pytest.raises(
        MergeError, match=f"^base lacks 1 tensor: {ADAPTER}; .*keep='GLOB', leave them out with drop='GLOB'$"
    ):
        run(
            recipe_of("task-arithmetic", short, {"scale": 1.0}, Policy(missing="zero-delta")),
            tmp_path / "out.pt",
            QUICK,
        )
    kept = Policy(missing="zero-delta", keep=(ADAPTER,))
    made = merged_every_way(recipe_of("task-arithmetic", short, {"scale": 1.0}, kept), tmp_path / "out.pt")
    assert torch.equal(made[ADAPTER], state(files["b"])[ADAPTER])


def test_policies_that_make_no_sense_are_told(files: dict[str, Path], tmp_path: Path) -> None:
    pair = [files["a"], files["b"], "-o", tmp_path / "out.pt"]
    outcome = command("interpolate", *pair, "--ratio", 0.5, "--missing", "zero-delta")
    assert outcome.err.startswith("error: --missing zero-delta says what lacks counts as the base's, and there is no")
    outcome = command("task-arithmetic", files["base"], *pair, "--missing", "union")
    assert outcome.err.startswith("error: --missing union has no meaning beside a base")
    outcome = command("interpolate", *pair, "--ratio", 0.5)
    assert "a lacks 1 tensor" in outcome.err
    shown = done("interpolate", *pair, "--ratio", 0.5, "--missing", "union", "--dry-run").out
    assert f"{PROMPT}, module.prompt, {ADAPTER}: missing: union\n" in shown
    shown = done("task-arithmetic", files["base"], *pair, "--missing", "zero-delta", "--dry-run").out
    assert f"{', '.join(TRUNK)}, {PROMPT}, ...: missing: zero-delta\n" in shown
