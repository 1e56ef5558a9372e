"""Adapters that are extracted are loaded by peft over the base, and give the finetuned model's logits."""

# peft and transformers are not always installed, and have no types where they are.
# pyright: basic, reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import merge
from tests.merge.shell import done

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 11}
LLAMA = {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 16}
IDS = torch.tensor([[1, 5, 7, 2]])


def llama(tied: bool) -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, tie_word_embeddings=tied))


def gpt2() -> Any:  # Conv1D, biases everywhere, tied
    sizes = {"n_embd": 8, "n_layer": 2, "n_head": 2, "vocab_size": 11, "n_positions": 16}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))


def qwen2() -> Any:  # biases in some of the linear layers
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**LLAMA, tie_word_embeddings=False))


MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: llama(tied=False),
    "llama, tied": lambda: llama(tied=True),
    "gpt2": gpt2,
    "qwen2": qwen2,
}


def pair(folder: Path, make: Callable[[], Any], *, all_of_it: bool) -> tuple[Any, Any]:
    """A base and a model in which everything has changed, or matrices alone; saved under their names."""
    torch.manual_seed(0)
    base, tuned = make().eval(), make().eval()
    tuned.load_state_dict(base.state_dict())
    for name, value in tuned.named_parameters():
        if all_of_it or (value.ndim == 2 and "emb" not in name and "wte" not in name and "wpe" not in name):
            value.data += 0.1 * torch.randn_like(value)
    for name, model in (("base", base), ("tuned", tuned)):
        model.save_pretrained(folder / name)
    return base, tuned


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, about what peft asks it
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("all_of_it", [False, True])
def test_at_full_rank_peft_gives_the_tuned_model(tmp_path: Path, name: str, all_of_it: bool) -> None:
    base, tuned = pair(tmp_path, MODELS[name], all_of_it=all_of_it)
    done("extract-lora", tmp_path / "tuned", tmp_path / "base", "--rank", 99, "-o", tmp_path / "lora")
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "lora").eval()
    torch.testing.assert_close(logits(loaded), logits(tuned), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits(loaded.merge_and_unload()), logits(tuned), rtol=1e-4, atol=1e-5)
    done("adapters", tmp_path / "lora", "--base", tmp_path / "base", "-w", 1, "-o", tmp_path / "again")
    again, wanted = (merge.load_checkpoint(tmp_path / folder) for folder in ("again", "tuned"))
    assert list(again) == list(wanted)
    for key, value in wanted.items():
        torch.testing.assert_close(again[key], value, rtol=0, atol=1e-6)
