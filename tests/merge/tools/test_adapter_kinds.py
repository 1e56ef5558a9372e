"""Kinds of LoRA adapters: settings that change nothing or are refused, embeddings, rows of tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import merge
from tests.merge.adapters import SHAPES, base_of, change, lora
from tests.merge.shell import command, done

# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"use_dora": True}, "use_dora is True: DoRA rescales"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa': the start took .* path_initial_model"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora'"),
        ({"init_lora_weights": "corda", "corda_config": {"x": 1}}, "init_lora_weights is 'corda'"),
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights is 'lora_ga'"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights is 'loftq': .* quantised"),
        ({"init_lora_weights": "newest"}, "init_lora_weights is 'newest': a start that is not known here"),
        ({"corda_config": {"corda_method": "kpm"}}, "corda_config is .*: the start took"),
        ({"loftq_config": {"loftq_bits": 4}}, "loftq_config is .* quantised"),
        ({"kasa_config": {"beta": 1e-4}}, "kasa_config is .*: KaSA cuts"),
        ({"use_kasa": True}, "use_kasa is True: KaSA cuts"),
        ({"use_qalora": True}, "use_qalora is True: the input is pooled"),
        ({"use_bdlora": {"nblocks": 2}}, "use_bdlora is .*: BD-LoRA"),
        ({"monteclora_config": {"num_samples": 2}}, "monteclora_config is"),
        ({"arrow_config": {"top_k": 2}}, "arrow_config is .*: Arrow"),
        ({"velora_config": {"num_groups": 2}}, "velora_config is"),
        ({"target_parameters": ["experts.gate"]}, "target_parameters is"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens is"),
        ({"ensure_weight_tying": True}, "ensure_weight_tying is"),
        ({"frobnicate": True}, "frobnicate is True: not known here"),
        ({"rank_pattern": {"(a+)+": 2}}, r"the pattern '\(a\+\)\+' of rank_pattern .* repeats a group: give the names"),
        ({"rank_pattern": {"(a|a)" * 30: 2}}, "has more than 3 repetitions or choices"),
        ({"alpha_pattern": {".*.*.*.*x": 2}}, "has more than 3 repetitions or choices"),
        ({"lora_alpha": 10**400}, "lora_alpha 1000"),
        ({"bias": "lora_only"}, "bias is 'lora_only': biases of the base were trained too; only plain LoRA"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only LORA"),
        ({"r": 3}, "do not fit its rank 3"),
        ({"rank_pattern": {"q": 5}}, "do not fit its rank 5"),
        ({"lora_alpha": None}, "lora_alpha None"),
        ({"alpha_pattern": {"q": "much"}}, "q has the alpha 'much'"),
        ({"alpha_pattern": {"(": 1}}, r"the pattern '\(' of alpha_pattern is no regular expression"),
        ({"rank_pattern": [1]}, r"rank_pattern is \[1\], not a dict"),
    ],
    ids=str,
)
def test_adapters_that_are_no_plain_lora(tmp_path: Path, config: dict[str, Any], told: str) -> None:
    with pytest.raises(merge.MergeError, match=told):
        merge.open_adapter(lora(tmp_path / "a", 0, **config))


def test_settings_that_change_nothing(tmp_path: Path) -> None:
    plain = merge.open_adapter(lora(tmp_path / "a", 0))
    neutral: dict[str, Any] = {"revision": "main", "lora_dropout": 0.1, "qalora_group_size": 16, "loftq_config": {}}
    neutral |= {"megatron_core": "megatron.core", "exclude_modules": ["x"], "layers_to_transform": [0], "unheard": None}
    for start in (True, False, "gaussian", "eva", "orthogonal", "mica"):
        other = merge.open_adapter(lora(tmp_path / str(start), 0, init_lora_weights=start, **neutral))
        assert all(torch.equal(change(other.modules[m]), change(plain.modules[m])) for m in SHAPES)
    done("adapters", tmp_path / "eva", tmp_path / "mica", "-o", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["init_lora_weights"] is True


def test_expressions_as_people_write_them(tmp_path: Path) -> None:
    patterns = {r"^encoder\.layers\.\d+\.(q|k)": 1, r".*decoder\.layers\.(0|1)\.v": 2, "no.such_module": 3}
    adapter = merge.open_adapter(lora(tmp_path / "a", 0, alpha_pattern=patterns))
    assert [adapter.modules[module].scale for module in SHAPES] == [0.5, 1.0]
    long = {f"{'a.' * 150}q": (2, 2)}
    with pytest.raises(merge.MergeError, match="too long a name for the pattern"):
        merge.open_adapter(lora(tmp_path / "b", 0, shapes=long, alpha_pattern={".*x": 1}))


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    shown = command("adapters", tmp_path / "model", "-o", tmp_path / "out")
    assert (shown.code, shown.err.count("\n")) == (2, 1)
    assert "model: not the folder of an adapter: it has no adapter_config.json" in shown.err


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ({"m.lora_A.weight": torch.ones(2, 3)}, "m has one of its factors and lacks the other"),
        ({"m.lora_magnitude_vector": torch.ones(2)}, "neither factor of a plain LoRA"),
    ],
)
def test_tensors_without_a_meaning(tmp_path: Path, extra: dict[str, Tensor], told: str) -> None:
    with pytest.raises(merge.MergeError, match=told):
        merge.open_adapter(lora(tmp_path / "a", 0, extra=extra))


# -- embeddings and rows of tokens -----------------------------------------------------------------------------------


def embedding(folder: Path, seed: int, copy: Tensor) -> Path:
    """An adapter of an embedding [9, 4] with peft's copy of the base's weight beside the factors."""
    generator = torch.Generator().manual_seed(seed)
    extra = {"embed.lora_embedding_A": torch.randn(2, 9, generator=generator), "embed.base_layer.weight": copy}
    return lora(folder, seed, extra={**extra, "embed.lora_embedding_B": torch.randn(4, 2, generator=generator)})


def test_the_copy_of_an_embedding_is_no_change(tmp_path: Path) -> None:
    weight = torch.randn(9, 4, generator=torch.Generator().manual_seed(4)).bfloat16()
    pair = [embedding(tmp_path / "emb", 0, weight), lora(tmp_path / "plain", 1)]
    done("adapters", *pair, "-o", tmp_path / "out")
    assert torch.equal(merge.open_adapter(tmp_path / "out").copies["embed"], weight)
    base = {**base_of(), "embed.weight": weight.float()}
    result = merge.apply_adapters(base, pair, weights=[0.5, 2.0])
    assert set(result) == set(base)
    wanted = base["embed.weight"] + 0.5 * change(merge.open_adapter(pair[0]).modules["embed"]).T.float()
    torch.testing.assert_close(result["embed.weight"], wanted)
    base["embed.weight"] = base["embed.weight"] + 1
    with pytest.raises(merge.MergeError, match=r"embed\.weight differs between the base \[9, 4\] and emb's copy"):
        merge.apply_adapters(base, pair)
    with pytest.raises(merge.MergeError, match="embed: emb and other hold other weights of it"):
        merge.merge_adapters([pair[0], embedding(tmp_path / "other", 2, weight + 1)])


def tokens(folder: Path, value: float, indices: Any, count: int = 2) -> Path:
    """An adapter that trained rows of the embedding [8, 3] to one value."""
    extra = {"embed.token_adapter.trainable_tokens_delta": torch.full((count, 3), value)}
    return lora(folder, 0, extra=extra, trainable_token_indices=indices)


def test_rows_of_tokens_are_merged_one_by_one(tmp_path: Path) -> None:
    pair = [tokens(tmp_path / "a", 10.0, [1, 5]), tokens(tmp_path / "b", 20.0, {"embed": [5, 7]})]
    base = base_of()
    result = merge.apply_adapters(base, pair, weights=[0.5, 0.25])["embed.weight"]
    before = base["embed.weight"]
    wanted = before.clone()
    wanted[1], wanted[5], wanted[7] = 5 + before[1] / 2, 10 + before[5] / 4, 5 + before[7] * 0.75
    torch.testing.assert_close(result, wanted)
    assert torch.equal(result[[0, 2, 3, 4, 6]], before[[0, 2, 3, 4, 6]])
    saved = merge.save_checkpoint(base, tmp_path / "base.safetensors")
    done("adapters", pair[0], "--base", saved, "-w", 1, "-o", tmp_path / "one.safetensors")
    one = load_file(tmp_path / "one.safetensors")["embed.weight"]
    assert one[[1, 5]].unique().tolist() == [10.0]


def test_rows_of_tokens_without_a_base(tmp_path: Path) -> None:
    pair = [tokens(tmp_path / "a", 10.0, [1, 5]), tokens(tmp_path / "b", 20.0, [1, 5])]
    done("adapters", *pair, "-w", 0.25, "-w", 0.75, "-o", tmp_path / "out")
    rows = merge.open_adapter(tmp_path / "out").rows["embed"]
    assert (rows.indices, rows.values.unique().tolist()) == ((1, 5), [17.5])
    shown = command("adapters", *pair, "-w", 1, "-w", 1, "-o", tmp_path / "sum")
    assert "embed: rows of tokens are averaged: weights must sum to 1; or add the adapters to" in shown.err
    other = tokens(tmp_path / "c", 1.0, [1, 6])
    shown = command("adapters", pair[0], other, "-o", tmp_path / "no")
    assert (shown.code, shown.err.count("\n")) == (2, 1)
    assert "embed: a and c trained other tokens, [1, 5] and [1, 6]: add the adapters to their base" in shown.err
    assert "--base" in shown.err
    base = merge.save_checkpoint(base_of(), tmp_path / "base.safetensors")
    done("adapters", pair[0], other, "--base", base, "-o", tmp_path / "followed.safetensors")


@pytest.mark.parametrize("indices", [None, [1], [1, 1], [1, -5], [1, "5"], {"other": [1, 5]}, 3], ids=str)
def test_rows_that_do_not_fit(tmp_path: Path, indices: Any) -> None:
    with pytest.raises(merge.MergeError, match=r"embed has trained rows of shape .* trainable_token_indices is"):
        merge.open_adapter(tokens(tmp_path / "a", 1.0, indices))


def test_rows_that_the_base_or_the_file_lacks(tmp_path: Path) -> None:
    with pytest.raises(merge.MergeError, match=r"embed\.weight is \[8, 3\] in the base, .* rows up to 8 of width 3"):
        merge.apply_adapters(base_of(), [tokens(tmp_path / "a", 1.0, [1, 8])])
    with pytest.raises(merge.MergeError, match=r"trainable_token_indices is \[1, 8\], and the file lacks such rows"):
        merge.open_adapter(lora(tmp_path / "b", 1, trainable_token_indices=[1, 8]))
    with pytest.raises(merge.MergeError, match="head has a copy of the base's weight and no factors"):
        merge.open_adapter(lora(tmp_path / "c", 1, extra={"head.base_layer.weight": torch.ones(2, 2)}))


def test_nan_in_what_is_copied_is_refused_unless_asked_for(tmp_path: Path) -> None:
    state = base_of()
    state["embed.weight"][2, 1] = torch.nan
    base, folder = merge.save_checkpoint(state, tmp_path / "base.safetensors"), lora(tmp_path / "a", 0)
    out = tmp_path / "out.safetensors"
    shown = command("adapters", folder, "--base", base, "-o", out)
    assert shown.code == 2
    assert "embed.weight: 1 infinite or NaN values in the result; pass --allow-nonfinite" in shown.err
    assert not out.exists()
    done("adapters", folder, "--base", base, "--allow-nonfinite", "-o", out)
    assert load_file(out)["embed.weight"].isnan().sum() == 1
    with pytest.raises(merge.MergeError, match=r"embed\.weight: 1 infinite or NaN values"):
        merge.apply_adapters(state, [folder])
    assert merge.apply_adapters(state, [folder], allow_nonfinite=True)["embed.weight"].isnan().sum() == 1
    shown = command("adapters", folder, "--allow-nonfinite", "-o", tmp_path / "merged")
    assert "--allow-nonfinite is for sums over a base" in shown.err
    spoilt = [lora(tmp_path / name, 0, extra={"head.weight": torch.tensor([torch.nan])}) for name in ("x", "y")]
    for folders in (spoilt, spoilt[:1]):
        shown = command("adapters", *folders, "-o", tmp_path / "merged")
        assert "head.weight: infinite or NaN values in what was trained whole" in shown.err
