"""Layers found from names, and results put together of them: laws, mistakes, and what configurations then say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import merge
from merge import Input, LivePath, MergeError, MergeWarning, Options, Recipe, merge_with, open_checkpoint
from merge.plan.depth import Depth, follow
from merge.plan.layers import lists_in, numbered, places
from tests.merge.made import Carrier, assert_same
from tests.merge.shell import command, done

CONFIG = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 4, "eos_token_id": [1, 2, 3, 4]}
CONFIG |= {"layer_types": ["full", "full", "sliding", "sliding"]}


def model(seed: int, layers: int = 4, *, head: bool = True, rows: int = 5, prefix: str = "model.") -> dict[str, Tensor]:
    """A Llama-like state."""
    generator = torch.Generator().manual_seed(seed)
    state = {f"{prefix}embed_tokens.weight": torch.randn(rows, 3, generator=generator)}
    for number in range(layers):
        state[f"{prefix}layers.{number}.mlp.up_proj.weight"] = torch.randn(4, 3, generator=generator)
        state[f"{prefix}layers.{number}.norm.weight"] = torch.randn(3, generator=generator)
    state[f"{prefix}norm.weight"] = torch.randn(3, generator=generator)
    return {**state, **({"lm_head.weight": torch.randn(rows, 3, generator=generator)} if head else {})}


def folder(place: Path, state: dict[str, Tensor], **config: Any) -> Path:
    merge.save_checkpoint(state, place)
    (place / "config.json").write_text(json.dumps({**CONFIG, **config}))
    return place


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "before", "behind"),
    [
        ("model.layers", "model.embed_tokens", "model.norm lm_head score"),
        ("transformer.h", "transformer.wte transformer.wpe", "transformer.ln_f lm_head"),
        ("gpt_neox.layers", "gpt_neox.embed_in gpt_neox.emb_dropout", "gpt_neox.final_layer_norm embed_out"),
        ("bert.encoder.layer", "bert.embeddings.LayerNorm", "bert.pooler.dense cls.predictions.transform classifier"),
        ("blocks", "patch_embed.norm pos_embed norm_pre", "norm fc_norm head"),
        (
            "vision_model.encoder.layers",
            "vision_model.pre_layrnorm vision_model.embeddings",
            "vision_model.post_layernorm",
        ),
        ("backbone.layers", "backbone.embeddings", "backbone.norm_f lm_head"),
        ("transformer.blocks", "transformer.wte", "transformer.norm_f"),
        (
            "model.decoder.layers",
            "model.decoder.project_in",
            "model.decoder.final_layer_norm model.decoder.project_out",
        ),
        (
            "language_model.model.layers",
            "vision_tower.ln_post projector.0",
            "language_model.model.norm language_model.lm_head",
        ),
    ],
)
def test_what_lies_before_and_behind_layers(layer: str, before: str, behind: str) -> None:
    layers = [f"{layer}.{number}.experts.{expert}.w" for number in range(3) for expert in range(2)]
    names = [*(f"{word}.weight" for word in (*before.split(), *behind.split())), *layers]
    if "vision_tower" in before:
        names.append("vision_tower.layers.0.w")
    found = places(names)
    assert {found[f"{word}.weight"].depth for word in behind.split()} == {1.0}
    near = [word for word in before.split() if not word.startswith("vision_tower")]
    assert {found[f"{word}.weight"].depth for word in near} == {0.0}
    assert [found[name].depth for name in layers] == [0, 0, 0.5, 0.5, 1, 1]


def test_lists_are_told_apart() -> None:
    names = [f"{side}.layers.{n}.w" for side in ("encoder", "decoder") for n in range(2)]
    assert list(lists_in([*names, "head.0.weight", "conv.3.weight"])) == ["encoder.layers", "decoder.layers"]
    assert list(lists_in(["0.weight", "2.weight"])) == [""]
    assert numbered("models.0.layers.3.w") == ("models.0.layers", 3, "w")
    assert numbered("layer1.weight") is None
    assert numbered(f"layers.{'9' * 5000}.w") is None


# -- laws --------------------------------------------------------------------------------------------------------------


def test_all_layers_once_are_the_model(tmp_path: Path) -> None:
    state = model(0)
    assert_same(merge_with("linear", {"a": state}, layers=[{"a": "all"}]), state)
    path = merge.save_checkpoint(state, tmp_path / "a.safetensors")
    done("layers", path, "--take", "0-3", "-o", tmp_path / "b.safetensors")
    assert merge.digest(path) == merge.digest(tmp_path / "b.safetensors")
    done("layers", path, "--take", "0-1,2,3", "-o", tmp_path / "b.pt")
    assert_same(merge.load_checkpoint(tmp_path / "b.pt"), state)


@given(st.permutations(range(4)))
def test_layers_moved_there_and_back_are_the_model(order: list[int]) -> None:
    state = model(1)
    moved = merge_with("linear", {"a": state}, layers=[{"a": (n, n + 1)} for n in order])
    back = [order.index(n) for n in range(4)]
    assert_same(merge_with("linear", {"a": moved}, layers=[{"a": (n, n + 1)} for n in back]), state)
    renamed = merge.renamed(merge.renamed(state, "model.=decoder."), "decoder.=model.")
    assert_same(dict(renamed), state)


def test_layers_of_equal_models_are_one_models(tmp_path: Path) -> None:
    one, layers = model(2), [{"a": (0, 2), "b": (0, 2)}, {"b": (1, 4), "a": (1, 4)}]
    taken = merge_with("linear", {"a": one}, layers=[{"a": (0, 2)}, {"a": (1, 4)}])
    for method in ("slerp", "interpolate"):
        assert_same(merge_with(method, {"a": one, "b": one}, layers=layers, ratio=0.3), taken)


def test_files_memory_and_digests_agree(tmp_path: Path) -> None:
    states = {name: model(seed) for seed, name in enumerate("ab")}
    for name, state in states.items():
        merge.save_checkpoint(state, tmp_path / f"{name}.pt")
    layers: Any = [{"a": (0, 2), "b": (1, 3)}, {"b": (1, 2)}, {"b": (1, 4)}]
    inputs = tuple(Input(name, tmp_path / f"{name}.pt") for name in "ab")
    recipe = Recipe("slerp", inputs, {"ratio": 0.25}, layers=layers)
    out = merge.run(recipe, tmp_path / "out.pt", Options(sync=False))
    got, wanted = merge.load_checkpoint(out), merge_with("slerp", states, ratio=0.25, layers=layers)
    assert_same({name: got.pop(name) for name in wanted}, wanted)
    assert not got
    recorded = json.loads((tmp_path / "out.pt.recipe.json").read_text())
    assert [item["digest"] for item in recorded["inputs"]] == [merge.digest(tmp_path / f"{name}.pt") for name in "ab"]
    again = merge.run(tmp_path / "out.pt.recipe.json", tmp_path / "again.pt", Options(sync=False))
    assert merge.digest(again) == merge.digest(out) == recorded["output"]["digest"]
    specs = open_checkpoint(out).entries
    assert specs["model.layers.2.norm.weight"].tie != specs["model.layers.3.norm.weight"].tie  # equal, and not tied


@pytest.mark.parametrize(
    ("method", "given"), [("interpolate", {"ratio": 0.25}), ("lines", {}), ("ties", {"density": 0.5})]
)
def test_a_live_model_may_be_put_together_of_layers(method: str, given: dict[str, Any]) -> None:
    base, a, b = (model(seed) for seed in range(3))
    layers: Any = [{"a": (0, 2), "b": (1, 3)}, {"b": (1, 2)}, {"a": (1, 4)}]
    if method != "interpolate":
        layers = [{**ranges, "base": next(iter(ranges.values()))} for ranges in layers]
    rest: Any = {"base": base if method != "interpolate" else None, "layers": layers}
    wanted = merge_with(method, {"a": a, "b": b}, **rest, **given)
    live = LivePath(Carrier(wanted), method, {"a": a, "b": b}, **rest)
    live.set_parameters(**given)
    assert_same({name: live.targets(unit)[0] for unit in live.units for name in unit.names}, wanted)


def test_a_base_takes_part_in_every_layer() -> None:
    base, a, b = (model(seed) for seed in range(3))
    layers = [{"a": (0, 2), "b": (0, 2)}, {"b": (2, 4)}]
    got = merge_with("task-arithmetic", {"a": a, "b": b}, base, scale=1.0, weights=[0.5, 1.0], layers=layers)
    name = "model.layers.1.norm.weight"
    torch.testing.assert_close(got[name], base[name] + 0.5 * (a[name] - base[name]) + (b[name] - base[name]))
    assert torch.equal(got["model.layers.3.norm.weight"], b["model.layers.3.norm.weight"])
    assert torch.equal(got["lm_head.weight"], b["lm_head.weight"])


def test_a_gradient_runs_from_before_the_layers_to_the_head(tmp_path: Path) -> None:
    zero = {name: torch.zeros_like(value) for name, value in model(0).items()}
    one = {name: torch.ones_like(value) for name, value in zero.items()}
    got = merge_with(
        "interpolate", [zero, one], ratio={"*.up_proj.*": {"gradient": [1, 0]}, "*": {"gradient": [0, 0.5, 1]}}
    )
    found = {name: round(value.flatten()[0].item(), 4) for name, value in got.items()}
    assert [found[f"model.layers.{n}.norm.weight"] for n in range(4)] == [0, 0.3333, 0.6667, 1]
    assert [found[f"model.layers.{n}.mlp.up_proj.weight"] for n in range(4)] == [1, 0.6667, 0.3333, 0]
    assert [found[name] for name in ("model.embed_tokens.weight", "lm_head.weight")] == [0, 1]
    for name, state in (("a", zero), ("b", one)):
        merge.save_checkpoint(state, tmp_path / f"{name}.pt")
    pair = (tmp_path / "a.pt", tmp_path / "b.pt", "-o", tmp_path / "out.pt")
    done("merge", "average", *pair, "-p", "weights=1:0,0:1")
    assert open_checkpoint(tmp_path / "out.pt")["model.layers.1.norm.weight"][0] == pytest.approx(1 / 3)
    assert "give 0 to 1" in command("merge", "slerp", *pair, "--overwrite", "-p", "ratio=0:x").err
    assert "outside [0, 1]" in command("merge", "slerp", *pair, "--overwrite", "-p", "ratio=0:2").err


# -- folders -----------------------------------------------------------------------------------------------------------


def test_a_configuration_follows(tmp_path: Path) -> None:
    kinds = {"layer_types": ["x", "y", "z", "w", "v"], "num_hidden_layers": 5}
    one, two = folder(tmp_path / "one", model(0)), folder(tmp_path / "two", model(1, 5), **kinds)
    done("layers", one, two, "--take", "0-2,two:1-3", "-o", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 6
    assert config["layer_types"] == ["full", "full", "sliding", "y", "z", "w"]
    assert config["eos_token_id"] == [1, 2, 3, 4]


def test_an_added_layer_may_compute_nothing(tmp_path: Path) -> None:
    merge.save_checkpoint(model(0), tmp_path / "a.pt")
    shown = done("layers", tmp_path / "a.pt", "--take", "0-1,1,2-3", "--zero", "*.2.mlp*", "-o", tmp_path / "b.pt")
    assert "1 tensor was scaled" in shown.out
    assert not open_checkpoint(tmp_path / "b.pt")["model.layers.2.mlp.up_proj.weight"].any()


def test_a_tied_head_is_written_where_it_is_anothers(tmp_path: Path) -> None:
    tied = [folder(tmp_path / n, model(s, head=False), tie_word_embeddings=True) for s, n in enumerate(("one", "two"))]
    done("layers", tied[0], "--take", "0-2,1-3", "-o", tmp_path / "deeper")
    assert "lm_head.weight" not in open_checkpoint(tmp_path / "deeper")
    done("layers", *tied, "--take", "0-1,two:2-3", "-o", tmp_path / "stacked")
    head = open_checkpoint(tmp_path / "stacked")["lm_head.weight"]
    assert torch.equal(head, model(1, head=False)["model.embed_tokens.weight"])
    assert json.loads((tmp_path / "stacked" / "config.json").read_text())["tie_word_embeddings"] is False


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([{"a": (0, 5)}], r"layers\[0\]: a has no layer 4: it has 4, numbered 0 to 3"),
        ([{"a": (0, 2), "b": (0, 3)}], r"layers\[0\]: a gives 2, b gives 3 layers"),
        ([{"c": (0, 2)}], r"layers\[0\] names 'c', which is no input"),
        ([{"a": (0, 4)}], "b is in no stretch of layers"),
        ([{"a": (2, 10**12)}], r"a has no layer 4, 5, 6, 7, 8, 9, 10, 11, \.\.\.: it has 4"),
        ([{"a": [2, 2]}], "must be \\[from, to\\)"),
        ([{"a": "some"}], "must be \\[from, to\\)"),
        ({"decoder": [{"a": (0, 2)}]}, "a has no layers called 'decoder'; it has model.layers \\(layers 0 to 3\\)"),
        ([{"a": (0, 2), "b": (0, 2), "other": (0, 2)}], "names 'other'"),
    ],
)
def test_mistakes_are_named(layers: Any, message: str) -> None:
    with pytest.raises(MergeError, match=message):
        merge_with("linear", {"a": model(0), "b": model(1)}, layers=layers)


def test_what_makes_no_model_is_refused() -> None:
    wide = {name: torch.cat([value, value], -1) for name, value in model(1).items()}
    both = [{"a": (0, 2)}, {"b": (2, 4)}]
    with pytest.raises(MergeError, match=r"layer 2 of b has \S+ of shape \[\d, 6\], a of \[\d, 3\]|shape"):
        merge_with("linear", {"a": model(0), "b": wide}, layers=both)
    more = {**model(1), "model.layers.2.bias": torch.zeros(3), "model.layers.3.bias": torch.zeros(3)}
    with pytest.raises(MergeError, match="only layer 2 of b has bias"):
        merge_with("linear", {"a": model(0), "b": more}, layers=both)
    with pytest.raises(MergeError, match=r"5 rows in a and lm_head\.weight has 7 rows in b"):
        merge_with("linear", {"a": model(0), "b": model(1, rows=7)}, layers=both)
    with pytest.raises(MergeError, match=r"rename='b:module.model.layers.=model.layers.'"):
        merge_with("linear", {"a": model(0), "b": model(1, prefix="module.model.")}, layers=both)
    three = [{"a": (0, 2), "b": (0, 2)}, {"a": (0, 1), "b": (0, 1), "c": (0, 1)}]
    with pytest.raises(MergeError, match=r"slerp takes 2 checkpoints, in layers\[1\] 3 were given"):
        merge_with("slerp", {"a": model(0), "b": model(1), "c": model(2)}, layers=three, ratio=0.5)
    sides = {f"{side}.layers.0.w": torch.zeros(2) for side in ("encoder", "decoder")}
    with pytest.raises(MergeError, match=r"say which is meant: encoder.layers \(layers 0 to 0\), decoder.layers"):
        merge_with("linear", {"a": sides}, layers=[{"a": (0, 1)}])
    got = merge_with("linear", {"a": sides}, layers={"decoder.layers": [{"a": (0, 1)}, {"a": (0, 1)}]})
    assert list(got) == ["encoder.layers.0.w", "decoder.layers.0.w", "decoder.layers.1.w"]


def test_configurations_of_unlike_meaning_are_refused_in_stacks_too(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", model(0), num_attention_heads=2)
    two = folder(tmp_path / "two", model(1), num_attention_heads=1)
    shown = command("layers", one, two, "--take", "0-1,two:2-3", "-o", tmp_path / "out")
    assert (shown.code, "num_attention_heads is 2 in one and 1 in two" in shown.err) == (2, True)
    assert "0-15, 3 or NAME:8-23" in command("layers", one, "--take", "3-1", "-o", tmp_path / "out").err
    assert not (tmp_path / "out").exists()


def test_an_embedding_stands_for_a_tied_head_if_asked_for() -> None:
    pair = {"a": model(0), "b": model(1, head=False)}
    policy = merge.Policy(untie=True)
    got = merge.interpolate(pair["a"], pair["b"], 0.5, policy=policy)
    wanted = torch.lerp(pair["a"]["lm_head.weight"], pair["b"]["model.embed_tokens.weight"], 0.5)
    assert torch.equal(got["lm_head.weight"], wanted)


# -- configurations ----------------------------------------------------------------------------------------------------


def edited(
    config: dict[str, Any], name: str, numbers: list[int], *, before: int, others: tuple[str, ...] = ()
) -> dict[str, Any]:
    copy = json.loads(json.dumps(config))
    depth = Depth(name, others, before, [(0, number) for number in numbers])
    list(follow(copy, [config], depth, "config.json"))
    return {key: value for key, value in copy.items() if config[key] != value}


@pytest.mark.parametrize(
    ("config", "name", "others", "changed"),
    [
        ({"n_layer": 3, "n_head": 3}, "transformer.h", (), {"n_layer": 4}),
        ({"num_layers": 3, "num_decoder_layers": 3}, "encoder.block", ("decoder.block",), {"num_layers": 4}),
        ({"num_layers": 3, "num_decoder_layers": 3}, "decoder.block", ("encoder.block",), {"num_decoder_layers": 4}),
        (
            {"encoder_layers": 3, "decoder_layers": 3, "num_hidden_layers": 3},
            "model.encoder.layers",
            ("model.decoder.layers",),
            {"encoder_layers": 4, "num_hidden_layers": 4},
        ),
        (
            {"text_config": {"num_hidden_layers": 3}, "vision_config": {"num_hidden_layers": 3}},
            "language_model.layers",
            ("vision_tower.layers",),
            {"text_config": {"num_hidden_layers": 4}},
        ),
        (
            {"num_hidden_layers": 3, "intermediate_size": [8, 16, 32], "rope_scaling": {"factors": [1, 2, 3]}},
            "model.layers",
            (),
            {"num_hidden_layers": 4, "intermediate_size": [8, 16, 16, 32]},
        ),
        (
            {"num_hidden_layers": 3, "cross_attention_layers": [1], "image_size": [3, 4, 5]},
            "model.layers",
            (),
            {"num_hidden_layers": 4, "cross_attention_layers": [1, 2]},
        ),
        (
            {"num_hidden_layers": 3, "first_k_dense_replace": 2},
            "model.layers",
            (),
            {"num_hidden_layers": 4, "first_k_dense_replace": 3},
        ),
        ({"num_hidden_layers": 3, "max_window_layers": 2}, "model.layers", (), {"num_hidden_layers": 4}),
    ],
)
def test_counts_and_lists_of_configurations(
    config: dict[str, Any], name: str, others: tuple[str, ...], changed: dict[str, Any]
) -> None:
    assert edited(config, name, [0, 1, 1, 2], before=3, others=others) == changed


def test_a_configuration_that_cannot_follow_is_an_error() -> None:
    with pytest.raises(MergeError, match=r"config\.json says num_hidden_layers 5, where the weights have 3 layers"):
        edited({"num_hidden_layers": 5}, "h", [0, 1], before=3)
    with pytest.raises(MergeError, match="sliding_window_pattern 2"):
        edited({"num_hidden_layers": 3, "sliding_window_pattern": 2}, "h", [0, 1, 1], before=3)
    assert edited({"num_hidden_layers": 4, "sliding_window_pattern": 2}, "h", [0, 1, 0, 1], before=4) == {}


def test_nothing_is_warned_of_in_a_stack_of_one() -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error", MergeWarning)
        merge_with("linear", {"a": model(0)}, layers=[{"a": (0, 1)}, {"a": (0, 4)}])


def test_ties_by_storage_stay_where_one_gives_both(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        state = model(seed, head=False)
        torch.save({**state, "lm_head.weight": state["model.embed_tokens.weight"]}, tmp_path / f"{name}.bin")
    for take, tied in (("0-2,1-3", True), ("0-1,b:2-3", False)):
        inputs = [tmp_path / "a.bin", *([] if tied else [tmp_path / "b.bin"])]
        done("layers", *inputs, "--take", take, "-o", tmp_path / "out.bin", "--overwrite")
        got = torch.load(tmp_path / "out.bin")
        assert (got["lm_head.weight"].data_ptr() == got["model.embed_tokens.weight"].data_ptr()) is tied
