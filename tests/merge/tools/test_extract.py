"""Adapters that are extracted: energy and ranks, what goes where, and mergekit's recorded products."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import merge
from merge import ExtractOptions, MergeError, extract_lora
from tests import ROOT
from tests.merge.shell import command, done

# mergekit-extract-lora's products of B and A, with --max-rank 2 and 8, and the weights that it was given.
RECORDED = ROOT / "tests" / "data" / "mergekit" / "extracted.safetensors"


def recorded(part: str) -> dict[str, Tensor]:
    found = merge.load_checkpoint(RECORDED)
    return {name.removeprefix(f"{part}/"): value for name, value in found.items() if name.startswith(f"{part}/")}


def product(made: Any, module: str) -> Tensor:
    return made.modules[module].b @ made.modules[module].a


@pytest.mark.parametrize("rank", [2, 8])
def test_products_are_those_of_mergekit(rank: int) -> None:
    made = extract_lora(recorded("tuned"), recorded("base"), ExtractOptions(rank=rank))
    assert list(made.whole) == ["model.norm"]
    for module, value in recorded(f"lora_rank{rank}").items():
        got = product(made, module) if module in made.modules else torch.zeros_like(value)
        torch.testing.assert_close(got, value, rtol=0, atol=1e-6)


def test_the_rank_is_that_of_the_change() -> None:
    """The recorded changes of q_proj and down_proj have rank 3, those of layer 1 are nothing; float32 rounds them."""
    for options in (ExtractOptions(), ExtractOptions(rank=16), ExtractOptions(energy=0.9999)):
        ranks = {
            name: item.rank for name, item in extract_lora(recorded("tuned"), recorded("base"), options).modules.items()
        }
        assert ranks["model.layers.0.self_attn.q_proj"] == ranks["model.layers.0.mlp.down_proj"] == 3
        assert not [name for name in ranks if "layers.1" in name and "v_proj" not in name]
        assert 14 <= ranks["model.layers.1.self_attn.v_proj"] <= 16


# -- a model of layers of every kind ---------------------------------------------------------------------------------

SHAPES = {
    "embed.weight": (9, 4),
    "pos_embed.weight": (6, 4),
    "layers.0.fc.weight": (6, 4),
    "layers.0.fc.bias": (6,),
    "layers.0.square.weight": (4, 4),
    "layers.0.square.bias": (4,),
    "layers.0.norm.weight": (4,),
    "layers.0.norm.bias": (4,),
    "layers.0.conv.weight": (3, 2, 2),
    "layers.1.fc.weight": (6, 4),
    "layers.1.fc.bias": (6,),
    "head.weight": (9, 4),
}


def states(changed: str = "*", seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A tuned model and its base, which differ in the tensors that a glob names."""
    from fnmatch import fnmatch

    generator = torch.Generator().manual_seed(seed)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    moved = {name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in base.items()}
    return {name: moved[name] if fnmatch(name, changed) else value for name, value in base.items()}, base


def back(made: Mapping[str, Tensor], base: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The adapter of two models at full rank, written, read and added to the base."""
    files = [merge.save_checkpoint(state, folder / f"{i}.pt") for i, state in enumerate((made, base))]
    done("extract-lora", *files, "--energy", 1, "-o", folder / "lora")
    return merge.apply_adapters(files[1], [folder / "lora"], weights=[1.0])


@pytest.mark.parametrize("changed", ["*", "*.fc.*", "layers.0.square.bias"])
def test_at_full_rank_the_adapter_gives_the_tuned_weights(tmp_path: Path, changed: str) -> None:
    tuned, base = states(changed)
    result = back(tuned, base, tmp_path)
    for name, value in tuned.items():
        torch.testing.assert_close(result[name], value, rtol=0, atol=1e-6)


def test_a_bias_of_b_is_merged_as_the_factors_are(tmp_path: Path) -> None:
    folders: list[Path] = []
    for seed in (1, 2):
        tuned, base = states("*.fc.*", seed)
        files = [merge.save_checkpoint(state, tmp_path / f"{seed}{i}.pt") for i, state in enumerate((tuned, base))]
        done("extract-lora", *files, "--rank", 9, "-o", tmp_path / f"lora{seed}")
        folders.append(tmp_path / f"lora{seed}")
    done("adapters", *folders, "-w", "0.25,0.5", "-o", tmp_path / "both")
    base = states()[1]
    got = merge.apply_adapters(base, [tmp_path / "both"], weights=[1.0])
    wanted = merge.apply_adapters(base, folders, weights=[0.25, 0.5])
    for name in base:
        torch.testing.assert_close(got[name], wanted[name], rtol=0, atol=1e-6)
    assert not torch.equal(got["layers.0.fc.bias"], base["layers.0.fc.bias"])
    with pytest.raises(MergeError, match=r"lora1 changes biases .lora_bias., which mode ties does not merge"):
        merge.merge_adapters(folders, mode="ties", density=0.5)


def test_every_change_goes_where_peft_has_a_place_for_it() -> None:
    tuned, base = states()
    made = extract_lora(tuned, base)
    # The head has no bias, and peft gives all factors a bias or none: what is smaller is saved whole.
    assert sorted(made.modules) == ["layers.0.fc", "layers.0.square", "layers.1.fc"]
    assert list(made.whole) == ["embed", "head", "layers.0.conv", "layers.0.norm", "pos_embed"]
    made = extract_lora(tuned, base, ExtractOptions(drop=["head.*"]))
    assert sorted(made.modules) == ["layers.0.fc", "layers.0.square", "layers.1.fc"]
    assert made.modules["layers.0.fc"].bias is not None
    assert made.skipped == ("head.weight",)
    only = extract_lora(tuned, base, ExtractOptions(only=["layers.*.fc.weight"], whole=["layers.1.*"]))
    assert (sorted(only.modules), list(only.whole)) == (["layers.0.fc"], ["layers.1.fc"])
    assert torch.equal(only.saved["layers.1.fc.weight"], tuned["layers.1.fc.weight"])
    assert torch.equal(only.saved["layers.1.fc.bias"], base["layers.1.fc.bias"])


def test_a_table_that_may_be_the_head_gives_its_changed_rows(tmp_path: Path) -> None:
    tuned, base = states("layers.0.fc.weight")
    for state in (tuned, base):
        state.pop("head.weight")
    tuned["embed.weight"] = base["embed.weight"].clone()
    tuned["embed.weight"][[2, 7]] += 1
    made = extract_lora(tuned, base)
    assert (made.rows["embed"].indices, made.whole) == ((2, 7), [])
    for state in (tuned, base):  # tied in the file: the rows are both names'
        state["lm_head.weight"] = state["embed.weight"]
    result = back(tuned, base, tmp_path)
    assert torch.equal(result["lm_head.weight"], tuned["embed.weight"])
    assert result["lm_head.weight"].data_ptr() == result["embed.weight"].data_ptr()


def test_transposed_weights_are_told_by_their_biases(tmp_path: Path) -> None:
    """As of GPT-2: the square one is turned as the others are."""
    generator = torch.Generator().manual_seed(1)
    shapes = {
        "attn.weight": (4, 12),
        "attn.bias": (12,),
        "proj.weight": (4, 4),
        "proj.bias": (4,),
        "score.weight": (2, 4),
    }
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    tuned = {name: value + torch.randn(value.shape, generator=generator) for name, value in base.items()}
    made = extract_lora(tuned, base, ExtractOptions(energy=1.0, drop=["*.bias"]))
    assert made.transposed
    assert list(made.whole) == ["score"]
    assert sorted(made.modules) == ["attn", "proj"]
    torch.testing.assert_close(product(made, "proj").T, tuned["proj.weight"] - base["proj.weight"])
    result = back(tuned, base, tmp_path)
    for name, value in tuned.items():
        torch.testing.assert_close(result[name], value, rtol=0, atol=1e-6)


def test_half_precision_comes_back_to_the_bit(tmp_path: Path) -> None:
    tuned, base = ({name: value.bfloat16() for name, value in state.items()} for state in states("layers*"))
    result = back(tuned, base, tmp_path)
    assert all(torch.equal(result[name], value) for name, value in tuned.items())


def test_energy_left_out_is_what_the_products_lack() -> None:
    tuned, base = states("*.fc.weight")
    made = extract_lora(tuned, base, ExtractOptions(rank=2))
    for module, left in made.left_out.items():
        change = tuned[f"{module}.weight"] - base[f"{module}.weight"]
        assert left == pytest.approx(
            float((change - product(made, module)).square().sum() / change.square().sum()), abs=1e-6
        )
    enough = extract_lora(tuned, base, ExtractOptions(energy=0.8))
    assert all(left <= 0.2 for left in enough.left_out.values())


def test_what_no_adapter_can_hold_is_refused() -> None:
    tuned, base = states("*.fc.*")
    cases: list[tuple[dict[str, Tensor], dict[str, Any], str]] = [
        (
            {"head.weight": torch.zeros(8, 4)},
            {},
            r"head.weight has shape \[8, 4\] in the tuned model and \[9, 4\] in the base",
        ),
        ({"scale": torch.ones(1)}, {}, "base lacks 1 tensor: scale"),
        ({}, {"only": ["head.*"]}, "no linear layer has changed"),
        ({}, {"drop": ["tail.*"]}, "drop='tail.*' matches no tensor"),
        ({}, {"rank": 0}, "rank=0: must be a whole number"),
        ({}, {"energy": 0.0}, "energy=0.0: must be a share"),
        ({"layers.0.fc.weight": torch.full((6, 4), torch.inf)}, {}, "infinite or NaN values in its change"),
    ]
    for change, options, message in cases:
        with pytest.raises(MergeError, match=message):
            extract_lora({**tuned, **change}, base, ExtractOptions(**options))
    with pytest.raises(MergeError, match="the two models are equal"):
        extract_lora(base, base)
    scaled = {"scale": torch.zeros(1), "base": base["head.weight"]}
    with pytest.raises(MergeError, match="scale has changed and belongs to no module"):
        extract_lora({**scaled, "scale": torch.ones(1)}, scaled)


def test_names_that_end_alike_are_told_apart(tmp_path: Path) -> None:
    """peft takes a module whose name ends as a target for one: an expression then says which is meant."""
    base = {name: torch.randn(3, 3) for name in ("fc.weight", "block.fc.weight")}
    base |= {"norm.weight": torch.ones(3), "block.norm.weight": torch.ones(3)}
    tuned = {**base, "fc.weight": base["fc.weight"] + 1, "norm.weight": base["norm.weight"] + 1}
    files = [merge.save_checkpoint(state, tmp_path / f"{i}.safetensors") for i, state in enumerate((tuned, base))]
    told = done("extract-lora", *files, "-o", tmp_path / "lora")
    assert told.out.splitlines()[1:] == ["fc: rank 1, 0.000% left out", "norm: whole"]
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert (config["target_modules"], config["modules_to_save"], config["r"]) == ("fc", ["norm"], 1)
    again = command("extract-lora", *files, "-o", tmp_path / "lora")
    assert again.code == 2
    assert "--overwrite" in again.err


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for name, state in zip(("tuned", "base"), states("layers.0.fc.weight"), strict=True):
        merge.save_checkpoint(state, f"{name}.safetensors")
    page = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8").split("# An adapter out of")[1]
    exec(page.split("```python\n")[1].split("```")[0])
    assert capsys.readouterr().out.startswith("layers.0.fc: rank 2, ")
