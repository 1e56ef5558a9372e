"""OFA and OFASys: fairseq's training files; in OFASys the embeddings' rows belong to tokens of a dictionary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import merge
from merge import MergeError, Policy, load_checkpoint, open_checkpoint, run
from tests.merge.handmade import assert_equal, fairseq, random_tensor
from tests.merge.made import assert_same
from tests.merge.shell import command, done
from tests.merge.ways import QUICK, merged_every_way, recipe_of

FIRST = {"<s>": 0, "<pad>": 1, "the": 2, "cat": 3}
SECOND = {"<pad>": 0, "<s>": 1, "<bin_0>": 2, "the": 3, "dog": 4}
UNION = {"<s>": 0, "<pad>": 1, "the": 2, "cat": 3, "<bin_0>": 4, "dog": 5}
EMBEDDINGS = ("encoder.adaptor.embed_tokens.weight", "decoder.adaptor.embed_tokens.weight", "decoder.lm_head.bias")


def model(seed: int, rows: int) -> dict[str, Any]:
    embed = random_tensor((rows, 3), torch.float32, seed)
    return {
        "encoder.version": torch.tensor([3.0]),
        "encoder.adaptor.embed_tokens.weight": embed,
        "encoder.adaptor.image_rp_bucket": torch.arange(6).view(2, 3),
        "encoder.layers.0.fc1.weight": random_tensor((rows, 3), torch.float32, seed + 1),
        "decoder.adaptor.embed_tokens.weight": embed,
        "decoder.lm_head.bias": random_tensor((rows,), torch.float32, seed + 2),
    }


def write(path: Path, seed: int, tokens: Mapping[str, int], rows: int | None = None) -> Path:
    """A training file as OFASys writes it."""
    part = model(seed, rows or len(tokens))
    part["encoder.layers.0.fc1.weight"] = random_tensor((5, 3), torch.float32, seed + 1)
    content = {
        "args": None,
        "cfg": {"model": {"arch": "base"}, "seed": seed},
        "configstore": {"ofasys.task": {"caption": {"template": "[IMAGE] -> [TEXT]"}}},
        "model": part,
        "optimizer_history": [{"optimizer_name": "Adam", "num_updates": 7}],
        "extra_state": {"metrics": [], "ema": model(seed + 50, rows or len(tokens)), "ema_fp32_params": {}},
        "global_dict_indices": dict(tokens),
    }
    torch.save(content, path)
    return path


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, Path]:
    return {"a": write(tmp_path / "a.pt", 0, FIRST), "b": write(tmp_path / "b.pt", 10, SECOND)}


def test_rows_are_merged_token_by_token(pair: dict[str, Path], tmp_path: Path) -> None:
    recipe = recipe_of("interpolate", pair, {"ratio": 0.25}, Policy(vocab_rows="keep-first"), "model")
    out = tmp_path / "out.pt"
    made = merged_every_way(recipe, out)
    first, second = (load_checkpoint(path, "model") for path in pair.values())
    for name in EMBEDDINGS:
        for token, row in UNION.items():
            a = first[name][FIRST[token]] if token in FIRST else None
            b = second[name][SECOND[token]] if token in SECOND else None
            wanted = torch.lerp(a, b, 0.25) if a is not None and b is not None else a if a is not None else b
            assert torch.equal(made[name][row], wanted), (name, token)
        assert len(made[name]) == len(UNION)
    after = torch.load(out, weights_only=True)
    assert list(after["global_dict_indices"].items()) == list(UNION.items())
    assert after["model"]["encoder.adaptor.embed_tokens.weight"].data_ptr() == (
        after["model"]["decoder.adaptor.embed_tokens.weight"].data_ptr()
    )
    before = torch.load(pair["a"], weights_only=True)
    assert list(after) == list(before)
    for key in ("args", "cfg", "configstore", "optimizer_history"):
        assert_equal(after[key], before[key], key)
    assert list(after["extra_state"]) == ["metrics", "ema_fp32_params"]


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_an_endpoint_keeps_the_rows_of_its_own_tokens(pair: dict[str, Path], tmp_path: Path, ratio: float) -> None:
    recipe = recipe_of("interpolate", pair, {"ratio": ratio}, Policy(missing="keep-first"), "model")
    made = merged_every_way(recipe, tmp_path / "out.pt")
    own = load_checkpoint(pair["ab"[int(ratio)]], "model")
    for token, row in (FIRST, SECOND)[int(ratio)].items():
        for name in EMBEDDINGS:
            assert torch.equal(made[name][UNION[token]], own[name][row])


def test_a_method_of_whole_tensors_sees_the_common_rows_alone(pair: dict[str, Path], tmp_path: Path) -> None:
    recipe = recipe_of("slerp", pair, {"ratio": 0.5}, Policy(vocab_rows="keep-first"), "model")
    made = merged_every_way(recipe, tmp_path / "out.pt")[EMBEDDINGS[0]]
    first, second = (load_checkpoint(path, "model")[EMBEDDINGS[0]] for path in pair.values())
    common = [token for token in FIRST if token in SECOND]
    parts = [{"w": value[[rows[token] for token in common]]} for value, rows in ((first, FIRST), (second, SECOND))]
    assert torch.equal(made[[UNION[token] for token in common]], merge.slerp(*parts, 0.5)["w"])


def test_equal_tokens_in_another_order_need_no_choice(tmp_path: Path) -> None:
    turned = {"cat": 0, "the": 1, "<s>": 2, "<pad>": 3}
    pair = {"a": write(tmp_path / "a.pt", 0, FIRST), "b": write(tmp_path / "b.pt", 10, turned)}
    recipe = recipe_of("interpolate", pair, {"ratio": 0.5}, Policy(), "model")
    made = merged_every_way(recipe, tmp_path / "out.pt")
    first, second = (load_checkpoint(path, "model")[EMBEDDINGS[0]] for path in pair.values())
    order = [turned[token] for token in FIRST]
    assert torch.equal(made[EMBEDDINGS[0]], torch.lerp(first, second[order], 0.5))


def test_differing_dictionaries_are_an_error_with_counts(pair: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(MergeError) as error:
        run(recipe_of("interpolate", pair, {"ratio": 0.5}, Policy(), "model"), tmp_path / "out.pt", QUICK)
    message = str(error.value)
    assert "the dictionaries differ: a lacks 2 of 6 rows ('<bin_0>', 'dog'); b lacks 1 of 6 rows ('cat')" in message
    assert message.endswith("keep such rows with vocab_rows='keep-first'")


def test_a_base_stands_for_an_expert_that_lacks_a_row(pair: dict[str, Path], tmp_path: Path) -> None:
    paths = {**pair, "base": write(tmp_path / "base.pt", 20, {"<s>": 0, "cat": 1})}
    policy = Policy(vocab_rows="zero-delta")
    made = merged_every_way(recipe_of("task-arithmetic", paths, {"scale": 1.0}, policy, "model"), tmp_path / "out.pt")
    name = EMBEDDINGS[0]
    base, a, b = (load_checkpoint(paths[key], "model")[name] for key in ("base", "a", "b"))
    tokens = torch.load(tmp_path / "out.pt", weights_only=True)["global_dict_indices"]
    assert list(tokens)[:2] == ["<s>", "cat"]
    assert torch.equal(made[name][0], base[0] + (a[0] - base[0]) + (b[1] - base[0]))
    torch.testing.assert_close(made[name][1], a[FIRST["cat"]])  # b lacks it: no task vector
    assert torch.equal(made[name][tokens["the"]], a[FIRST["the"]])  # the base lacks it: the first that has it
    assert torch.equal(made[name][tokens["dog"]], b[SECOND["dog"]])


def test_the_dictionary_goes_into_safetensors_too(pair: dict[str, Path], tmp_path: Path) -> None:
    recipe = recipe_of("average", pair, {}, Policy(vocab_rows="keep-first"), "model")
    out = run(recipe, tmp_path / "out.safetensors", QUICK)
    assert open_checkpoint(out).tokens == UNION
    again = run(recipe_of("average", {"x": out, "y": out}, {}, Policy()), tmp_path / "again.safetensors", QUICK)
    assert_same(load_checkpoint(again), load_checkpoint(out))


def test_embeddings_of_two_dictionaries_are_refused(pair: dict[str, Path], tmp_path: Path) -> None:
    policy = Policy(vocab_rows="keep-first", keep=("decoder.lm_head.bias",))
    with pytest.raises(MergeError, match=r"6 rows and .*bias has 4 rows, of different dictionaries"):
        run(recipe_of("average", pair, {}, policy, "model"), tmp_path / "out.pt", QUICK)


def test_no_weights_stay_that_would_keep_the_old_rows(pair: dict[str, Path], tmp_path: Path) -> None:
    recipe = recipe_of("average", pair, {}, Policy(vocab_rows="keep-first", keep=("*fc1*",)), "extra_state.ema")
    merged = open_checkpoint(run(recipe, tmp_path / "out.pt", QUICK))
    assert merged.sections == ("extra_state.ema",)
    assert merged.tokens is not None
    assert len(merged.tokens) == len(merged["encoder.adaptor.embed_tokens.weight"])


def test_one_dictionary_without_the_others_is_refused(pair: dict[str, Path], tmp_path: Path) -> None:
    merge.save_checkpoint(load_checkpoint(pair["b"], "model"), tmp_path / "bare.safetensors")
    three = {**pair, "c": write(tmp_path / "c.pt", 3, FIRST)}
    opened = {name: open_checkpoint(path, "model") for name, path in three.items()}
    opened["c"] = open_checkpoint(tmp_path / "bare.safetensors")
    with pytest.raises(MergeError, match="c has no"):
        merge.average(opened, policy=Policy(vocab_rows="keep-first"))


def test_a_version_is_never_averaged(tmp_path: Path) -> None:
    states = [{"encoder.version": torch.tensor([value]), "w": torch.zeros(1)} for value in (2.0, 3.0)]
    with pytest.raises(MergeError, match=r"encoder.version is float32 and differs .* a version is never merged"):
        merge.average(states)
    assert merge.average(states, policy=Policy(keep=("*version",)))["encoder.version"].item() == 2
    half = merge.average([states[0], states[0]], policy=Policy(dtype=torch.float16))
    assert (half["encoder.version"].dtype, half["w"].dtype) == (torch.float32, torch.float16)


def test_dry_run_tells_what_is_put_together(pair: dict[str, Path], tmp_path: Path) -> None:
    argv = ["average", pair["a"], pair["b"], "--section", "model", "--vocab-rows", "keep-first"]
    out = done(*argv, "-o", tmp_path / "out.pt", "--dry-run").out
    assert (
        "encoder.adaptor.embed_tokens.weight, decoder.adaptor.embed_tokens.weight, decoder.lm_head.bias: by row" in out
    )
    assert command(*argv[:-1], "some", "-o", tmp_path / "out.pt").err.startswith(
        "error: Invalid value for '--vocab-rows': 'some' is not one of error, keep-first, zero-delta"
    )


def test_an_ofa_file_comes_back_whole(tmp_path: Path) -> None:
    """fairseq's layout with what a task left in `task_state`, merged with itself and read by torch."""
    content = {**fairseq(3), "task_state": {"best": 0.5, "seen": [1, 2], "table": torch.arange(3)}}
    del content["extra_state"]["ema"], content["extra_state"]["ema_fp32_params"], content["last_optimizer_state"]
    file = tmp_path / "a.pt"
    torch.save(content, file)
    out = run(recipe_of("average", {"x": file, "y": file}, {}, Policy()), tmp_path / "o.pt", QUICK)
    assert_equal(torch.load(out, weights_only=False), torch.load(file, weights_only=False), "file")
