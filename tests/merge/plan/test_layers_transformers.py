"""Layers of models of transformers, tied and untied, in shards: the result loads and computes what it should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import merge
from merge import Options, read_recipe
from tests import DATA
from tests.merge.shell import done

transformers = pytest.importorskip("transformers")
WORDS = torch.tensor([[1, 5, 7, 2]])


def made(kind: str, seed: int, *, tied: bool = False) -> Any:
    """A tiny model with four layers."""
    torch.manual_seed(seed)
    if kind == "llama":
        sizes = {"num_hidden_layers": 4, "hidden_size": 16, "intermediate_size": 20, "num_attention_heads": 2}
        config = transformers.LlamaConfig(vocab_size=24, tie_word_embeddings=tied, **sizes)
        return transformers.LlamaForCausalLM(config).eval()
    if kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=24, n_layer=4, n_embd=16, n_head=2, tie_word_embeddings=tied)
        return transformers.GPT2LMHeadModel(config).eval()
    sizes = {"vocab_size": 24, "d_model": 16, "d_kv": 8, "d_ff": 20, "num_heads": 2, "tie_word_embeddings": tied}
    config = transformers.T5Config(num_layers=4, num_decoder_layers=4, decoder_start_token_id=0, **sizes)
    return transformers.T5ForConditionalGeneration(config).eval()


def saved(model: Any, place: Path, *, shard_size: str = "1GB") -> Path:
    model.save_pretrained(place, max_shard_size=shard_size)
    return place


def loaded(place: Path) -> Any:
    """The folder as transformers loads it; nothing may be missing or left over."""
    model, told = transformers.AutoModelForCausalLM.from_pretrained(place, output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(WORDS, use_cache=False).logits


def layers_of(model: Any) -> Any:
    return model.transformer.h if hasattr(model, "transformer") else model.model.layers


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_layers_moved_by_hand(tmp_path: Path, kind: str, tied: bool) -> None:
    one = made(kind, 0, tied=tied)
    done("layers", saved(one, tmp_path / "one", shard_size="4KB"), "--take", "0-2,1-3", "-o", tmp_path / "out")
    old = list(layers_of(one))
    layers_of(one).extend(old[1:])
    layers_of(one)[3] = old[1]
    layers_of(one)[4] = old[2]
    layers_of(one)[5] = old[3]
    del layers_of(one)[6]
    one.config.num_hidden_layers = 6
    got = loaded(tmp_path / "out")
    assert got.config.num_hidden_layers == 6
    torch.testing.assert_close(logits(got), logits(one), rtol=0, atol=0)


@pytest.mark.parametrize("second_tied", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_layers_of_two_with_the_second_ones_head(tmp_path: Path, kind: str, tied: bool, second_tied: bool) -> None:
    one, two = made(kind, 0, tied=tied), made(kind, 1, tied=second_tied)
    places = [saved(model, tmp_path / name) for name, model in (("one", one), ("two", two))]
    done("layers", *places, "--take", "0-1,two:2-3", "-o", tmp_path / "out", "--shard-size", "6KB")
    first, second = layers_of(one), layers_of(two)
    for number in (2, 3):
        first[number] = second[number]
    if kind == "llama":
        one.model.norm = two.model.norm
    else:
        one.transformer.ln_f = two.transformer.ln_f
    one.lm_head = two.lm_head
    got = loaded(tmp_path / "out")
    assert got.config.tie_word_embeddings is False
    torch.testing.assert_close(logits(got), logits(one), rtol=0, atol=0)


def test_an_added_layer_of_zeros_changes_nothing(tmp_path: Path) -> None:
    one = made("llama", 0)
    zero = ("--zero", "*.2.*o_proj*", "--zero", "*.2.*down_proj*")
    done("layers", saved(one, tmp_path / "one"), "--take", "0-1,1,2-3", *zero, "-o", tmp_path / "out")
    torch.testing.assert_close(logits(loaded(tmp_path / "out")), logits(one), rtol=0, atol=1e-6)


def test_the_decoder_of_an_encoder_decoder(tmp_path: Path) -> None:
    one = made("t5", 0)
    done("layers", saved(one, tmp_path / "one"), "--take", "decoder.block=0-2", "-o", tmp_path / "out")
    one.decoder.block = one.decoder.block[:3]
    got, told = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        ours, theirs = (model(WORDS, decoder_input_ids=WORDS).logits for model in (got.eval(), one))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_recorded_folders_give_the_recorded_logits(tmp_path: Path) -> None:
    folder = DATA / "mergekit_folders"
    other = {"chat_template_bad", "passthrough_tied", "passthrough_untied_to_tied"}  # where mergekit errs
    other |= {"chat_template_text"}  # inputs are rounded to bfloat16 there, not here
    for name, recorded in json.loads((folder / "recipes.json").read_text()).items():
        if recorded.get("logits") and name not in other:
            got = loaded(merge.run(read_recipe(folder / f"{name}.yml"), tmp_path / name, Options(sync=False)))
            with torch.no_grad():
                found = got(torch.tensor([[1, 5, 7]])).logits[0, -1, : len(recorded["logits"])].float()
            torch.testing.assert_close(found, torch.tensor(recorded["logits"]), rtol=0, atol=1e-4)
