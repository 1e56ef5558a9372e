"""Training files as published: the weights of one section are merged, everything else stays as it was."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from merge import Input, Options, Recipe, load_checkpoint, open_checkpoint, run
from tests.merge.handmade import assert_equal, assert_tensors, fairseq
from tests.merge.running import Server

QUICK = Options(sync=False)
Middle = Callable[[Tensor, Tensor, float], Tensor]


def recipe_of(*paths: Path, ratio: float = 0.5, section: str = "auto") -> Recipe:
    return Recipe("interpolate", tuple(Input(f"m{i}", path, section) for i, path in enumerate(paths)), {"ratio": ratio})


def expected(first: dict[str, Tensor], second: dict[str, Tensor], ratio: float, middle: Middle) -> dict[str, Tensor]:
    """What interpolation makes of the tiny model: an end as it is; between, counters at their maximum."""
    if ratio in (0, 1):
        return second if ratio else first
    return {
        name: middle(tensor, second[name], ratio) if tensor.is_floating_point() else torch.maximum(tensor, second[name])
        for name, tensor in first.items()
    }


def check_training_file(out: Path, seeds: tuple[int, int], ratio: float, section: str, middle: Middle) -> None:
    """The whole file against what two calls of `fairseq` say, to the bit."""
    first, second = (fairseq(seed) for seed in seeds)
    after = torch.load(out, weights_only=False)
    gone = ("last_optimizer_state",) if section == "model" else ("last_optimizer_state", "model")
    assert list(after) == [key for key in first if key not in gone]
    for key in ("args", "cfg", "criterion", "optimizer_history", "task_state"):
        assert_equal(after[key], first[key], key)
    extra, want = after["extra_state"], first["extra_state"]
    for key in ("metrics", "train_iterator", "val_loss", "best"):
        assert_equal(extra[key], want[key], key)
    if section == "model":
        merged, old, new = after["model"], first["model"], second["model"]
        assert list(extra) == [key for key in want if not key.startswith("ema")]
        assert_equal(vars(merged), vars(old), "metadata of the state dict")
    else:
        merged, old, new = extra["ema"], want["ema"], second["extra_state"]["ema"]
        assert list(extra) == [key for key in want if key != "ema_fp32_params"]
    assert type(merged) is type(old)
    assert_tensors(merged, expected(old, new, ratio, middle), ordered=True)
    for name, tensor in old.items():
        assert (type(merged[name]), merged[name].requires_grad) == (type(tensor), tensor.requires_grad), name
    tied = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight")
    assert len({merged[name].data_ptr() for name in tied}) == 1


@pytest.mark.parametrize(
    ("section", "ratio"), [("model", 0.4), ("extra_state.ema", 0.4), ("model", 0.0), ("model", 1.0)]
)
def test_a_training_file_through_interpolate(
    fairseq_pair: tuple[Path, Path], tmp_path: Path, command: Server, middle: Middle, section: str, ratio: float
) -> None:
    out = tmp_path / "merged.pt"
    shown = command("interpolate", *fairseq_pair, "--ratio", ratio, "--section", section, "-o", out)
    assert shown.code == 0, shown
    check_training_file(out, (0, 1), ratio, section, middle)
    if section == "model":
        second = ["extra_state.ema", "extra_state.ema_fp32_params"]
    else:
        second = ["model", "extra_state.ema_fp32_params"]
    notes = [f"note: left out {name}: weights that were not merged" for name in second]
    notes.append("note: left out last_optimizer_state: the state of a training that is over")
    told = [line for line in shown.err.splitlines() if not line.startswith("note: left out of caption, beside")]
    assert sorted(told) == sorted(notes)


def test_a_merged_training_file_is_merged_again(fairseq_pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The output has the layout of the input, so it is an input."""
    once = run(recipe_of(*fairseq_pair, ratio=0.0, section="model"), tmp_path / "once.pt", QUICK)
    assert open_checkpoint(once).section == "model"
    twice = run(recipe_of(once, once), tmp_path / "twice.pt", QUICK)
    assert_tensors(load_checkpoint(twice), load_checkpoint(fairseq_pair[0], "model"), ordered=True)


def test_a_section_alone_as_safetensors(fairseq_pair: tuple[Path, Path], tmp_path: Path, middle: Middle) -> None:
    out = run(recipe_of(*fairseq_pair, ratio=0.25, section="extra_state.ema"), tmp_path / "ema.safetensors", QUICK)
    first, second = (fairseq(seed)["extra_state"]["ema"] for seed in range(2))
    assert_tensors(load_file(out), expected(first, second, 0.25, middle))


def test_an_average_that_shares_the_weights_is_no_stale_copy(tmp_path: Path) -> None:
    """The same dictionary under both names (saved before the first update) is merged under both."""
    shared = {"w": torch.arange(4.0)}
    torch.save({"model": shared, "extra_state": {"ema": shared, "best": True}, "done": True}, tmp_path / "a.pt")
    out = run(recipe_of(tmp_path / "a.pt", tmp_path / "a.pt", section="model"), tmp_path / "out.pt", QUICK)
    after = torch.load(out)
    assert_tensors(after["model"], shared)
    assert after["extra_state"]["best"] is True
    assert after["done"] is True


@pytest.mark.parametrize("value", [True, None, 0.999, "path/to/ema.pt", {}, {"decay": 0.999}, 0])
def test_words_of_sections_with_other_content_stay(tmp_path: Path, value: object) -> None:
    tree = {"model": {"w": torch.ones(2)}, "model_ema": value, "flag": value, "more": [{"x": value}]}
    torch.save(tree, tmp_path / "a.pt")
    out = run(recipe_of(tmp_path / "a.pt", tmp_path / "a.pt"), tmp_path / "out.pt", QUICK)
    assert_equal(torch.load(out), tree)


def test_marks_on_parameters_stay(tmp_path: Path) -> None:
    """Training code marks parameters with attributes of its own."""
    marked = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    marked.tensor_model_parallel = True  # type: ignore[attr-defined]
    torch.save({"model": {"w": marked}, "other": marked}, tmp_path / "a.pt")
    out = run(recipe_of(tmp_path / "a.pt", tmp_path / "a.pt"), tmp_path / "out.pt", QUICK)
    after = torch.load(out, weights_only=False)
    for parameter in (after["model"]["w"], after["other"]):
        assert type(parameter) is torch.nn.Parameter
        assert not parameter.requires_grad
        assert vars(parameter) == {"tensor_model_parallel": True}


def test_dropped_and_added_tensors_of_a_section(tmp_path: Path) -> None:
    """Names keep their places, what is dropped goes, what only the second has comes last; what is no tensor stays."""
    first = {"b": torch.ones(2), "_extra_state": {"scale": 1.5}, "a": torch.zeros(2), "gone": torch.zeros(1)}
    torch.save({"model": first, "n": 1}, tmp_path / "a.pt")
    torch.save({"model": {**first, "late": torch.arange(3.0)}, "n": 2}, tmp_path / "b.pt")
    recipe = recipe_of(tmp_path / "a.pt", tmp_path / "b.pt")
    recipe = replace(recipe, policy=replace(recipe.policy, drop=("gone",), missing="keep-first"))
    after = torch.load(run(recipe, tmp_path / "out.pt", QUICK))
    assert list(after["model"]) == ["b", "_extra_state", "a", "late"]
    assert after["model"]["_extra_state"] == {"scale": 1.5}
    assert after["model"]["late"].tolist() == [0, 1, 2]
    assert after["n"] == 1


def test_four_equal_models_average_to_themselves(tmp_path: Path, command: Server) -> None:
    """Also where one lacks a tensor: its share is not taken for zeros."""
    paths = [tmp_path / f"m{index}.pt" for index in range(4)]
    for index, path in enumerate(paths):
        tensors = {"w": torch.full((3,), 8.0), "head": torch.full((2,), 8.0)}
        if index == 2:
            del tensors["head"]
        torch.save({"model": tensors}, path)
    refused = command("average", *paths, "-o", tmp_path / "soup.pt")
    assert refused.code == 2
    assert "m2 lacks 1 tensor: head" in refused.err
    assert "--missing keep-first" in refused.err
    assert not (tmp_path / "soup.pt").exists()
    assert command("average", *paths, "--missing", "keep-first", "-o", tmp_path / "soup.pt").code == 0
    soup = torch.load(tmp_path / "soup.pt")["model"]
    assert {name: tensor.tolist() for name, tensor in soup.items()} == {"w": [8.0] * 3, "head": [8.0] * 2}
