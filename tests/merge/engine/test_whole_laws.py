"""Laws of plans, for every method: names, layers and vocabularies that change nothing change no bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import merge
from merge import Checkpoint, MergeError, Policy
from merge.methods import METHODS
from tests.merge.made import assert_same, count_of, in_memory, ordered_as, parameters_of
from tests.merge.tokenized import language_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Checkpoint]:
    """Six models of one vocabulary, with two layers, added tokens and rows of none."""
    found: list[Checkpoint] = []
    for seed in range(6):
        folder = language_model(
            tmp_path_factory.mktemp("models") / "model", 10 * seed, added=("<tool>", "<end>"), padding=2
        )
        generator = torch.Generator().manual_seed(seed)
        layers = {f"model.layers.{i}.w": torch.randn(4, 3, generator=generator) for i in range(2)}
        file = folder / "model.safetensors"
        state = merge.load_checkpoint(file)
        merge.save_checkpoint(
            {
                **{k: v for k, v in state.items() if "lm_head" not in k},
                **layers,
                "lm_head.weight": state["lm_head.weight"],
            },
            file,
            overwrite=True,
        )
        found.append(merge.open_checkpoint(folder))
    return found


def made(method: str, models: list[Checkpoint], policy: Policy | None = None, **more: Any) -> dict[str, Tensor]:
    """A merge by the method's usual parameters; the last model is the base where it takes one."""
    inputs = {f"in{index}": models[index] for index in range(count_of(method))}
    base = models[-1] if METHODS[method].takes_base else None
    return in_memory(method, inputs, {**parameters_of(method), **more}, policy, base)


def same(got: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert_same(ordered_as(got, wanted), wanted)
    assert set(got) == set(wanted)


@pytest.mark.parametrize("method", METHODS)
def test_what_changes_no_name_layer_or_row_changes_no_bit(method: str, models: list[Checkpoint]) -> None:
    plain = made(method, models)
    same(made(method, [one.renamed(("model.=net.", "net.=model.")) for one in models]), plain)
    if "seed" not in METHODS[method].parameters:  # random masks go by names
        other = made(method, [one.renamed(("model.=net.",)) for one in models])
        same({name.replace("net.", "model."): value for name, value in other.items()}, plain)
    once = [dict.fromkeys([f"in{index}" for index in range(count_of(method))])]
    ways: list[dict[str, Any]] = [{"layers": once}, {"policy": Policy(tokenizer="union")}]
    for way in ways:
        if METHODS[method].statistics:
            with pytest.raises(MergeError, match="merges whole models"):
                made(method, models, **way)
        else:
            same(made(method, models, **way), plain)


def test_a_vocabulary_given_as_a_folder_of_equal_rows_is_the_identity(models: list[Checkpoint]) -> None:
    plain = made("average", models)
    for tokenizer in ("first", "in1", str(models[3].path)):
        same(made("average", models, Policy(tokenizer=tokenizer)), plain)
