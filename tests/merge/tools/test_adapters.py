"""LoRA adapters: the exact sum, averaged factors, recompression, sums over a base, what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

import merge
from merge.tools.adapters.folder import Adapter, Factors
from merge.tools.adapters.merged import MergedAdapter
from tests.merge.adapters import SHAPES, base_of, change, lora
from tests.merge.made import assert_same
from tests.merge.shell import command, done


def exact(adapters: list[Adapter], weights: list[float], module: str) -> Tensor:
    """sum_i w_i s_i B_i A_i in float64, whole."""
    return sum(w * change(a.modules[module]) for a, w in zip(adapters, weights, strict=True) if module in a.modules)


@pytest.fixture
def adapters(tmp_path: Path) -> list[Adapter]:
    folders = [lora(tmp_path / "vqa", 0), lora(tmp_path / "caption", 1, 3, lora_alpha=5), lora(tmp_path / "ground", 2)]
    return [merge.open_adapter(folder) for folder in folders]


# -- exact sums ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [[0.2, 0.5, 0.3], [1.0, 1.0, 1.0], [1.5, -2.0, 0.25], [0.0, 1.0, 0.0]], ids=str)
def test_the_exact_sum(adapters: list[Adapter], weights: list[float]) -> None:
    merged = merge.merge_adapters(adapters, weights=weights)
    for module in SHAPES:
        torch.testing.assert_close(
            change(merged.modules[module]), exact(adapters, weights, module), rtol=1e-5, atol=1e-6
        )
    assert merged.rank == (7 if all(weights) else 3)
    assert (merged.distance, merged.discarded, merged.notes) == (0.0, 0.0, ())


def test_without_weights_all_count_the_same(adapters: list[Adapter]) -> None:
    merged, given_ = merge.merge_adapters(adapters), merge.merge_adapters(adapters, weights=[1 / 3] * 3)
    assert all(torch.equal(merged.modules[m].b, given_.modules[m].b) for m in SHAPES)


def test_the_factor_a_keeps_its_bits(adapters: list[Adapter]) -> None:
    merged = merge.merge_adapters(adapters, weights=[0.1, 0.2, -0.7])
    for module in SHAPES:
        assert torch.equal(merged.modules[module].a, torch.cat([adapter.modules[module].a for adapter in adapters]))


def test_scales_of_rslora_and_patterns(tmp_path: Path) -> None:
    plain = merge.open_adapter(lora(tmp_path / "a", 0, 4))
    root = merge.open_adapter(lora(tmp_path / "b", 0, 4, use_rslora=True))
    pattern = merge.open_adapter(lora(tmp_path / "c", 0, 4, alpha_pattern={"q": 1, "layers.0.q": 2}))
    assert [a.modules["encoder.layers.0.q"].scale for a in (plain, root, pattern)] == [2.0, 4.0, 0.25]
    assert pattern.modules["decoder.layers.0.v"].scale == 2.0


def test_a_module_that_one_lacks_counts_as_zero(tmp_path: Path) -> None:
    both = merge.open_adapter(lora(tmp_path / "a", 0))
    one = merge.open_adapter(lora(tmp_path / "b", 1, 3, {"encoder.layers.0.q": (6, 5)}))
    merged = merge.merge_adapters([both, one], weights=[0.5, 0.5])
    for module in SHAPES:
        assert merged.modules[module].rank == 5  # filled up with zeros: one rank for all
        torch.testing.assert_close(change(merged.modules[module]), exact([both, one], [0.5, 0.5], module))


def test_embeddings_and_half_precision(tmp_path: Path) -> None:
    a, b = torch.randn(2, 9).half(), torch.randn(4, 2).half()
    extra = {"shared.lora_embedding_A": a, "shared.lora_embedding_B": b}
    adapter = merge.open_adapter(lora(tmp_path / "a", 0, extra=extra))
    merged = merge.merge_adapters([adapter], weights=[0.5]).modules["shared"]
    assert torch.equal(merged.a, a)
    assert torch.equal(merged.b, (b.float() * 2).half())
    base = {"shared.weight": torch.zeros(9, 4), **{f"{m}.weight": torch.zeros(shape) for m, shape in SHAPES.items()}}
    torch.testing.assert_close(
        merge.apply_adapters(base, [adapter], weights=[1.0])["shared.weight"], 4 * (b.float() @ a.float()).T
    )


# -- averaged factors, smaller ranks ---------------------------------------------------------------------------------


def test_averaged_factors_say_how_far_off_they_are(tmp_path: Path) -> None:
    pair = [merge.open_adapter(lora(tmp_path / name, seed)) for seed, name in enumerate("ab")]
    merged = merge.merge_adapters(pair, weights=[0.5, 0.5], mode="factors")
    wanted = [exact(pair, [0.5, 0.5], module) for module in SHAPES]
    got = [change(merged.modules[module]) for module in SHAPES]
    for module, value in zip(SHAPES, got, strict=True):
        a, b = pair[0].modules[module], pair[1].modules[module]
        torch.testing.assert_close(
            value, (4 * (a.b + b.b).double() / 2) @ ((a.a + b.a).double() / 2), rtol=1e-5, atol=1e-6
        )
    apart = math.sqrt(sum(float((x - y).square().sum()) for x, y in zip(got, wanted, strict=True)))
    assert merged.distance == pytest.approx(apart / math.sqrt(sum(float(y.square().sum()) for y in wanted)), rel=1e-5)
    assert merged.rank == 2


def test_an_adapter_averaged_with_itself_is_itself(tmp_path: Path) -> None:
    pair = [merge.open_adapter(lora(tmp_path / name, 0)) for name in "ab"]
    merged = merge.merge_adapters(pair, weights=[0.5, 0.5], mode="factors")
    assert merged.distance == pytest.approx(0, abs=1e-7)
    for module in SHAPES:
        torch.testing.assert_close(change(merged.modules[module]), change(pair[0].modules[module]))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), rank=st.integers(1, 8))
def test_a_smaller_rank_leaves_out_the_smallest_singular_values(seed: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    factors = [
        Factors(torch.randn(3, 5, generator=generator), torch.randn(6, 3, generator=generator), 1.0) for _ in "ab"
    ]
    pair = [Adapter(str(i), {}, {"m": item}, {}, None) for i, item in enumerate(factors)]  # type: ignore[arg-type]
    merged = merge.merge_adapters(pair, weights=[0.7, 0.3], rank=rank)
    wanted = exact(pair, [0.7, 0.3], "m")
    values = torch.linalg.svdvals(wanted).square()
    assert merged.discarded == pytest.approx(float(values[rank:].sum() / values.sum()), abs=1e-6)
    apart = float((change(merged.modules["m"]) - wanted).norm() / wanted.norm())
    assert apart == pytest.approx(math.sqrt(merged.discarded), abs=1e-6)
    assert apart == pytest.approx(merged.distance, abs=1e-6)
    assert merged.rank <= rank


# -- over a base -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_over_a_base_the_sum_is_rounded_once(adapters: list[Adapter], dtype: torch.dtype) -> None:
    base = base_of(dtype)
    result = merge.apply_adapters(base, adapters, weights=[0.2, 0.3, 0.5])
    assert list(result) == list(base)
    assert result["embed.weight"] is base["embed.weight"]
    for module in SHAPES:
        wanted = base[f"{module}.weight"].double() + exact(adapters, [0.2, 0.3, 0.5], module)
        one = torch.finfo(dtype).eps
        assert result[f"{module}.weight"].dtype == dtype
        torch.testing.assert_close(result[f"{module}.weight"].double(), wanted, rtol=one, atol=1e-5)


def test_the_merged_adapter_over_the_base_is_the_sum_over_the_base(adapters: list[Adapter], tmp_path: Path) -> None:
    folders = [adapter.checkpoint.path.parent for adapter in adapters]
    done("adapters", *folders, "-o", tmp_path / "merged")
    again = merge.apply_adapters(base_of(), [merge.open_adapter(tmp_path / "merged")], weights=[1.0])
    for name, value in merge.apply_adapters(base_of(), adapters).items():
        torch.testing.assert_close(again[name], value)


def test_transposed_modules(tmp_path: Path) -> None:
    adapter = merge.open_adapter(lora(tmp_path / "a", 0, fan_in_fan_out=True))
    base = {f"{module}.weight": torch.zeros(shape[::-1]) for module, shape in SHAPES.items()}
    result = merge.apply_adapters(base, [adapter], weights=[1.0])
    for module in SHAPES:
        torch.testing.assert_close(
            result[f"{module}.weight"].double(), change(adapter.modules[module]).T, rtol=1e-5, atol=1e-6
        )


def test_a_base_that_does_not_fit(adapters: list[Adapter]) -> None:
    base = base_of()
    with pytest.raises(
        merge.MergeError, match=r"the base lacks decoder\.layers\.0\.v\.weight, which vqa changes; it has embed"
    ):
        merge.apply_adapters({"embed.weight": base["embed.weight"]}, adapters)
    base["encoder.layers.0.q.weight"] = torch.zeros(5, 6)
    with pytest.raises(merge.MergeError, match=r"is \[5, 6\] torch.float32 in the base, .* change has shape \[6, 5\]"):
        merge.apply_adapters(base, adapters)


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_what_peft_reads(adapters: list[Adapter], tmp_path: Path) -> None:
    folders = [adapter.checkpoint.path.parent for adapter in adapters]
    shown = done("adapters", *folders, "-w", 0.5, "-w", 0.3, "-w", 0.2, "-o", tmp_path / "out")
    assert shown.out == f"{tmp_path / 'out'}: 0.50 vqa + 0.30 caption + 0.20 ground, rank 7, 2 modules\n"
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert {key: config[key] for key in ("r", "lora_alpha", "use_rslora", "task_type", "rank_pattern")} == {
        "r": 7,
        "lora_alpha": 7,
        "use_rslora": False,
        "task_type": "CAUSAL_LM",
        "rank_pattern": {},
    }
    assert config["target_modules"] == sorted(SHAPES)
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert tensors["base_model.model.decoder.layers.0.v.lora_A.weight"].shape == (7, 7)
    merged = merge.open_adapter(tmp_path / "out")
    for module in SHAPES:
        torch.testing.assert_close(
            change(merged.modules[module]), exact(adapters, [0.5, 0.3, 0.2], module), rtol=1e-5, atol=1e-6
        )
    with safe_open(tmp_path / "out" / "adapter_model.safetensors", "pt") as file:
        noted = json.loads(file.metadata()["unival_merge"])
    assert [item["share"] for item in noted["inputs"]] == [0.5, 0.3, 0.2]


def test_the_command_over_a_base_gives_what_the_library_gives(adapters: list[Adapter], tmp_path: Path) -> None:
    base = merge.save_checkpoint(base_of(torch.bfloat16), tmp_path / "base.safetensors")
    folders = [adapter.checkpoint.path.parent for adapter in adapters]
    shown = done("adapters", *folders, "-w", 1, "-w", 1, "-w", -0.5, "--base", base, "-o", tmp_path / "out.safetensors")
    assert shown.out == f"{tmp_path / 'out.safetensors'}: base.safetensors + 1.00 vqa + 1.00 caption - 0.50 ground\n"
    wanted = merge.apply_adapters(base_of(torch.bfloat16), adapters, weights=[1, 1, -0.5])
    assert_same(merge.load_checkpoint(tmp_path / "out.safetensors"), wanted)


def test_the_command_states_the_error_of_averaged_factors_and_of_ranks(tmp_path: Path) -> None:
    pair = [lora(tmp_path / name, seed) for seed, name in enumerate("ab")]
    shown = json.loads(done("adapters", *pair, "--mode", "factors", "-o", tmp_path / "f", "--json").out)
    text = done("adapters", *pair, "--mode", "factors", "-o", tmp_path / "f", "--overwrite").out
    assert f"averaged factors are not the exact sum: relative Frobenius distance {shown['distance']:.3g}" in text
    text = done("adapters", *pair, "--rank", 3, "-o", tmp_path / "r").out
    assert "rank 3, 2 modules; left out " in text
    assert command("adapters", *pair, "-o", tmp_path / "r").code == 2


def test_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    pair = [lora(tmp_path / name / "last", seed) for seed, name in enumerate("ab")]
    assert "names that differ (--name): last, last" in command("adapters", *pair, "-o", tmp_path / "out").err
    shown = done("adapters", *pair, "--name", "vqa", "--name", "caption", "-o", tmp_path / "out").out
    assert "0.50 vqa + 0.50 caption" in shown


def test_different_bases_are_noted(tmp_path: Path) -> None:
    pair = [lora(tmp_path / "a", 0), lora(tmp_path / "b", 1, base_model_name_or_path="other")]
    shown = command("adapters", *pair, "-o", tmp_path / "out")
    assert (shown.code, shown.err.count("\n")) == (0, 1)
    assert "note: the adapters name different bases, pretrained (a), other (b)" in shown.err


# -- whole modules ---------------------------------------------------------------------------------------------------


def test_modules_trained_whole_are_averaged(tmp_path: Path) -> None:
    heads = [{"head.weight": torch.full((2, 2), float(i)), "head.bias": torch.full((2,), 2.0 * i)} for i in range(2)]
    pair = [
        merge.open_adapter(lora(tmp_path / n, i, extra=h, modules_to_save=["head"]))
        for i, (n, h) in enumerate(zip("ab", heads, strict=True))
    ]
    merged = merge.merge_adapters(pair, weights=[0.25, 0.75])
    assert merged.saved["head.weight"].unique().tolist() == [0.75]
    done("adapters", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "out")
    assert merge.open_adapter(tmp_path / "out").saved["head.bias"].tolist() == [1.0, 1.0]
    result = merge.apply_adapters({**base_of(), "head.weight": torch.zeros(2, 2)}, pair, weights=[0.5, 0.5])
    assert result["head.weight"].unique().tolist() == [0.5]
    assert result["head.bias"].unique().tolist() == [1.0]
    with pytest.raises(merge.MergeError, match=r"head.bias was trained whole and is averaged: .* sum to 1, not 2"):
        merge.merge_adapters(pair, weights=[1.0, 1.0])


def test_a_module_trained_whole_in_one_only(tmp_path: Path) -> None:
    pair = [lora(tmp_path / "a", 0, extra={"head.weight": torch.ones(2, 2)}), lora(tmp_path / "b", 1)]
    with pytest.raises(merge.MergeError, match=r"head\.weight was trained whole in a and is not in b: merge each"):
        merge.merge_adapters([merge.open_adapter(folder) for folder in pair])
    shown = command("adapters", *pair, "-o", tmp_path / "out")
    assert shown.code == 2
    assert "first (--base, weight 1), and merge the models" in shown.err


def test_one_adapter_with_a_module_trained_whole_over_its_base(tmp_path: Path) -> None:
    folder = lora(tmp_path / "a", 0, extra={"head.weight": torch.ones(2, 2)}, modules_to_save=["head"])
    base = merge.save_checkpoint({**base_of(), "head.weight": torch.zeros(2, 2)}, tmp_path / "base.safetensors")
    done("adapters", folder, "--base", base, "-w", 1, "-o", tmp_path / "out.safetensors")
    result, adapter = load_file(tmp_path / "out.safetensors"), merge.open_adapter(folder)
    assert torch.equal(result["head.weight"], torch.ones(2, 2))
    wanted = base_of()["encoder.layers.0.q.weight"] + change(adapter.modules["encoder.layers.0.q"]).float()
    torch.testing.assert_close(result["encoder.layers.0.q.weight"], wanted)
    shown = command("adapters", folder, "--base", base, "-w", 0.5, "-o", tmp_path / "half.safetensors")
    assert "head.weight was trained whole and is averaged: weights must sum to 1" in shown.err


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"weights": [0.5, 0.5]}, "2 weights were given for 3 adapters"),
        ({"weights": [0.0, 0.0, 0.0]}, "must be finite and not all 0"),
        ({"weights": [math.nan, 0.0, 0.0]}, "must be finite"),
        ({"mode": "factors"}, "has ranks 2 and 3: factors can be averaged at one rank only"),
        ({"mode": "mean"}, "mode 'mean': must be one of exact, factors"),
        ({"rank": 0}, "rank 0: must be 1 or more"),
        ({"mode": "factors", "rank": 2}, "is not for mode 'factors'"),
    ],
    ids=str,
)
def test_arguments_that_are_refused(adapters: list[Adapter], arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(merge.MergeError, match=told):
        merge.merge_adapters(adapters, **arguments)


def test_adapters_of_other_shapes_infinities_and_names(tmp_path: Path) -> None:
    one = merge.open_adapter(lora(tmp_path / "a", 0))
    other = merge.open_adapter(lora(tmp_path / "b", 1, shapes={"encoder.layers.0.q": (6, 4)}))
    with pytest.raises(merge.MergeError, match=r"encoder\.layers\.0\.q: .* in a and .* in b; these adapters belong"):
        merge.merge_adapters([one, other])
    with pytest.raises(merge.MergeError, match=r"names that differ \(name=...\): a, a"):
        merge.merge_adapters([one, one])
    flipped = merge.open_adapter(lora(tmp_path / "c", 1, fan_in_fan_out=True))
    with pytest.raises(merge.MergeError, match="fan_in_fan_out differs"):
        merge.merge_adapters([one, flipped])
    one.modules["encoder.layers.0.q"].a[0, 0] = math.inf  # a private map: the file stays
    with pytest.raises(merge.MergeError, match=r"encoder\.layers\.0\.q: infinite or NaN"):
        merge.merge_adapters([one, merge.open_adapter(lora(tmp_path / "d", 1))])
    assert isinstance(merge.merge_adapters([other]), MergedAdapter)


def test_a_tie_in_the_base_is_not_broken_silently(tmp_path: Path) -> None:
    state = base_of()
    state["decoder.tied.weight"] = state["decoder.layers.0.v.weight"]
    base = merge.save_checkpoint(state, tmp_path / "base.pt")
    shown = command("adapters", lora(tmp_path / "a", 0), "--base", base, "-o", tmp_path / "out.pt")
    assert shown.code == 2
    assert "is one tensor with decoder.layers.0.v.weight and decoder.tied.weight in the base" in shown.err
    assert not (tmp_path / "out.pt").exists()


def test_folders_are_adapters_too(tmp_path: Path) -> None:
    folders = [lora(tmp_path / name, seed) for seed, name in enumerate("ab")]
    by_path, by_text = merge.merge_adapters(folders), merge.merge_adapters([str(folder) for folder in folders])
    opened = merge.merge_adapters([merge.open_adapter(folder) for folder in folders])
    assert opened.modules
    for module, factors in opened.modules.items():
        for same in (by_path.modules[module], by_text.modules[module]):
            assert torch.equal(same.a, factors.a)
            assert torch.equal(same.b, factors.b)
