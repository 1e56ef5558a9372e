"""Adapters that peft itself writes are merged as peft merges them, and peft reads what is written."""

# peft is not always installed, and has no types where it is.
# pyright: basic, reportMissingImports=false

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import merge
from tests.merge.shell import done

peft = pytest.importorskip("peft")


class Model(nn.Module):
    """An embedding, two matrices and a head, all filled with the same random numbers each time."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.q, self.v, self.head = nn.Embedding(9, 4), nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 2)
        generator = torch.Generator().manual_seed(0)
        for value in self.parameters():
            value.data = torch.randn(value.shape, generator=generator)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.v(self.q(self.embed(ids))))


def trained(folder: Path, seed: int, **config: Any) -> dict[str, Tensor]:
    """Write an adapter with random values through peft; return the weights that peft merges it to."""
    model = peft.get_peft_model(Model(), peft.LoraConfig(**config))
    generator = torch.Generator().manual_seed(seed)
    for value in model.parameters():
        if value.requires_grad:
            value.data = torch.randn(value.shape, generator=generator)
    model.save_pretrained(folder)
    return state_of(model)


def state_of(model: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.merge_and_unload().state_dict().items()}


KINDS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ["q", "v"], "r": 2},
    "rslora": {"target_modules": ["q", "v"], "r": 4, "use_rslora": True, "alpha_pattern": {"v": 3}},
    "ranks": {"target_modules": ["q", "v"], "r": 2, "rank_pattern": {"q": 3}, "init_lora_weights": "gaussian"},
    "saved": {"target_modules": ["q"], "r": 2, "modules_to_save": ["head"]},
    "embedding": {"target_modules": ["embed", "q"], "r": 2},
    "tokens": {"target_modules": ["q"], "r": 2, "trainable_token_indices": {"embed": [1, 5]}},
    "orthogonal": {"target_modules": ["q"], "r": 2, "init_lora_weights": "orthogonal"},
    "mica": {"target_modules": ["q"], "r": 2, "init_lora_weights": "mica"},
}


@pytest.mark.parametrize("config", KINDS.values(), ids=list(KINDS))
def test_one_adapter_over_its_base_is_what_peft_merges(tmp_path: Path, config: dict[str, Any]) -> None:
    wanted = trained(tmp_path / "a", 1, **config)
    base = merge.save_checkpoint(Model().state_dict(), tmp_path / "base.safetensors")
    done("adapters", tmp_path / "a", "--base", base, "-w", 1, "-o", tmp_path / "out.safetensors")
    result = merge.load_checkpoint(tmp_path / "out.safetensors")
    assert set(result) == set(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(result[name], value)


@pytest.mark.parametrize("config", KINDS.values(), ids=list(KINDS))
def test_peft_reads_the_merged_adapter(tmp_path: Path, config: dict[str, Any]) -> None:
    one, two = (trained(tmp_path / name, seed, **config) for seed, name in enumerate("ab"))
    done("adapters", tmp_path / "a", tmp_path / "b", "-w", 0.25, "-w", 0.75, "-o", tmp_path / "out")
    result = state_of(peft.PeftModel.from_pretrained(Model(), tmp_path / "out"))
    for name, value in one.items():
        torch.testing.assert_close(result[name], 0.25 * value + 0.75 * two[name])


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_starts_that_change_the_base(tmp_path: Path, start: str) -> None:
    trained(tmp_path / "a", 1, target_modules=["q"], r=2, init_lora_weights=start)
    with pytest.raises(merge.MergeError, match="path_initial_model_for_weight_conversion"):
        merge.open_adapter(tmp_path / "a")


@pytest.mark.filterwarnings("ignore:PiSSA changes the base")
def test_the_advice_for_such_starts_works(tmp_path: Path) -> None:
    model = peft.get_peft_model(Model(), peft.LoraConfig(target_modules=["q"], r=2, init_lora_weights="pissa"))
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = "pissa"
    for value in model.parameters():
        if value.requires_grad:
            value.data = value.data + 0.25
    model.save_pretrained(tmp_path / "a", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    wanted = state_of(model)
    result = merge.apply_adapters(Model().state_dict(), [tmp_path / "a"], weights=[1.0])
    torch.testing.assert_close(result["q.weight"], wanted["q.weight"], rtol=1e-5, atol=1e-5)
