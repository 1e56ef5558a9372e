"""The numeric policy of merging, line by line: the tests are named after its nine lines."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import merge
from merge import MergeError, Policy
from merge.methods import METHODS
from tests.merge.made import assert_same, bits, copied, in_memory, weights

NAN, INF = math.nan, math.inf
RATIOS = [i / 10 for i in range(11)]


def one(*values: float, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {"w": torch.tensor(values, dtype=dtype)}


def noise(seed: int, count: int = 4000, dtype: torch.dtype = torch.float32) -> Tensor:
    """Values of very different sizes, all finite in the dtype."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(count, generator=generator) * 10 ** torch.randn(count, generator=generator)).to(dtype)


# -- 1. computed in float32, rounded once ----------------------------------------------------------------------------


def test_1_bf16_average_of_eight_is_rounded_once() -> None:
    generator = torch.Generator().manual_seed(0)
    experts = [torch.randn(20_000, generator=generator).bfloat16() for _ in range(8)]
    exact = torch.stack([value.double() for value in experts]).mean(0).bfloat16()
    merged = merge.average([{"w": value} for value in experts])["w"]
    assert merged.dtype == torch.bfloat16
    assert (merged != exact).double().mean() < 0.001
    stored = experts[0] / 8
    for value in experts[1:]:
        stored = stored + value / 8
    assert (stored != exact).double().mean() > 0.4  # what rounding at every step would do


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_1_narrow_dtypes_are_computed_in_float32(dtype: torch.dtype) -> None:
    a, b = torch.randn(2, 3000, generator=torch.Generator().manual_seed(0)).to(dtype).unbind()
    merged = merge.interpolate({"w": a}, {"w": b}, 0.3)["w"]
    assert torch.equal(bits(merged), bits(torch.lerp(a.float(), b.float(), 0.3).to(dtype)))


def test_1_float64_on_request() -> None:
    a, b = noise(1), noise(2)
    exact = torch.lerp(a.double(), b.double(), 0.3).float()
    wide = merge.interpolate({"w": a}, {"w": b}, 0.3, policy=Policy(compute_dtype=torch.float64))["w"]
    assert torch.equal(wide, exact)
    assert not torch.equal(merge.interpolate({"w": a}, {"w": b}, 0.3)["w"], exact)


def test_1_float64_tensors_are_computed_as_they_are() -> None:
    a, b = noise(1).double() / 3, noise(2).double() / 3
    merged = merge.interpolate({"w": a}, {"w": b}, 0.3)["w"]
    assert merged.dtype == torch.float64
    assert torch.equal(merged, torch.lerp(a, b, 0.3))


def test_1_output_dtype_is_rounded_to_once() -> None:
    a, b = noise(1, dtype=torch.float16), noise(2, dtype=torch.float16)
    merged = merge.interpolate({"w": a}, {"w": b}, 0.3, policy=Policy(dtype=torch.bfloat16))["w"]
    assert torch.equal(merged, torch.lerp(a.float(), b.float(), 0.3).bfloat16())
    twice = torch.lerp(a.float(), b.float(), 0.3).half().bfloat16()
    assert not torch.equal(merged, twice)


def test_1_complex_tensors_are_interpolated_by_parts() -> None:
    a, b = torch.randn(2, 50, dtype=torch.complex64, generator=torch.Generator().manual_seed(0)).unbind()
    merged = merge.interpolate({"w": a}, {"w": b}, 0.3)["w"]
    wanted = torch.complex(torch.lerp(a.real, b.real, 0.3), torch.lerp(a.imag, b.imag, 0.3))
    assert torch.equal(merged, wanted)
    with pytest.raises(MergeError, match="w is complex"):
        merge.slerp({"w": a}, {"w": b}, 0.3)


# -- 2. two-way linear is a lerp -------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [merge.interpolate, merge.slerp])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_2_endpoints_are_bitwise(function: Callable[..., dict[str, Tensor]], dtype: torch.dtype) -> None:
    a, b = {"w": noise(1, dtype=dtype)}, {"w": noise(2, dtype=dtype)}
    a["w"][0], b["w"][0] = -0.0, 0.0
    assert_same(function(a, b, 0), a)
    assert_same(function(a, b, 1), b)


@pytest.mark.parametrize("function", [merge.interpolate, merge.slerp])
def test_2_a_large_and_a_small_endpoint(function: Callable[..., dict[str, Tensor]]) -> None:
    """`a + r * (b - a)` gives 0 for the second endpoint here."""
    a, b = one(1e20, 1.0), one(1.0, 1e20)
    assert_same(function(a, b, 1.0), b)
    assert_same(function(b, a, 1.0), a)


@pytest.mark.parametrize("ratio", RATIOS)
def test_2_frozen_tensors_stay_frozen(ratio: float) -> None:
    a, frozen = noise(1, 30_000), noise(2, 30_000)
    merged = merge.interpolate({"w": a, "frozen": frozen}, {"w": -a, "frozen": frozen.clone()}, ratio)
    assert torch.equal(merged["frozen"], frozen)
    average = merge.average(
        [{"w": a, "frozen": frozen.clone()}, {"w": a, "frozen": frozen}, {"w": -a, "frozen": frozen}],
        weights=[0.3, 0.7 * ratio, 0.7 * (1 - ratio)],
    )
    assert torch.equal(average["frozen"], frozen)
    if 0 < ratio < 1:
        assert not torch.equal((1 - ratio) * frozen + ratio * frozen, frozen) or ratio == 0.5


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 2.5])
def test_2_frozen_tensors_have_no_task_vector(scale: float) -> None:
    frozen = noise(2)
    base, experts = {"w": frozen}, [{"w": frozen.clone()}, {"w": frozen.clone()}]
    assert torch.equal(merge.task_arithmetic(base, experts, scale)["w"], frozen)
    assert torch.equal(merge.task_arithmetic(base, experts[:1], scale)["w"], frozen)


def test_2_what_has_share_0_does_not_leak() -> None:
    fine, broken = one(1.0, 2.0, 3.0), one(NAN, INF, -INF)
    for function in (merge.interpolate, merge.slerp):
        assert_same(function(fine, broken, 0.0), fine)
        assert_same(function(broken, fine, 1.0), fine)
    assert_same(merge.average([broken, fine, broken], weights=[0, 1, 0]), fine)
    assert_same(merge.average([fine, broken, fine], weights=[0.25, 0, 0.75]), fine)
    assert_same(merge.task_arithmetic(fine, [broken], 0.0), fine)
    assert_same(merge.task_arithmetic(broken, [fine], 1.0), fine)
    experts = {"fine": one(3.0, 3.0, 3.0), "broken": broken}
    merged = in_memory("task-arithmetic", experts, {"scale": 0.5, "weights": [1, 0]}, base=fine)
    assert_same(merged, one(2.0, 2.5, 3.0))


def test_2_what_has_share_0_in_a_rule_by_module_does_not_leak() -> None:
    a = {"image.w": torch.tensor([1.0]), "text.w": torch.tensor([1.0])}
    b = {"image.w": torch.tensor([NAN]), "text.w": torch.tensor([3.0])}
    merged = merge.interpolate(a, b, {"image.*": 0.0, "*": 0.5})
    assert_same(merged, {"image.w": torch.tensor([1.0]), "text.w": torch.tensor([2.0])})


def test_2_what_has_weight_0_does_not_leak_from_a_file(tmp_path: Path) -> None:
    merge.save_checkpoint(one(1.0), tmp_path / "a.safetensors")
    merge.save_checkpoint(one(NAN), tmp_path / "b.safetensors")
    inputs = tuple(merge.Input(name, tmp_path / f"{name}.safetensors") for name in "ab")
    out = merge.run(merge.Recipe("interpolate", inputs, {"ratio": 0.0}), tmp_path / "m.safetensors")
    assert_same(merge.load_checkpoint(out), one(1.0))


# -- 3. integers are never arithmetic --------------------------------------------------------------------------------

INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint64, torch.bool]


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("method", sorted(METHODS))
def test_3_equal_integers_are_kept(dtype: torch.dtype, method: str) -> None:
    value = torch.tensor([0, 1, 1, 0]).to(dtype)
    states = [{"table": value.clone(), "w": torch.randn(2)} for _ in range(2)]
    if METHODS[method].takes_base:
        merged = merge.task_arithmetic(states[0], states[1:], 0.5)
    else:
        merged = merge.interpolate(states[0], states[1], 0.5)
    assert_same({"table": merged["table"]}, {"table": value})


@pytest.mark.parametrize("dtype", INTEGERS)
def test_3_integers_that_differ_are_named(dtype: torch.dtype) -> None:
    a = {"encoder.table": torch.tensor([0, 1]).to(dtype)}
    b = {"encoder.table": torch.tensor([1, 1]).to(dtype)}
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(MergeError, match=rf"^encoder\.table is {kind} and differs between first and second: .*keep="):
        merge.interpolate(a, b, 0.5)
    assert_same(merge.interpolate(a, b, 0.5, policy=Policy(keep=("*table",))), a)


def test_3_a_large_integer_keeps_every_digit() -> None:
    value = torch.tensor([2**53 + 1, -(2**62) - 1])
    assert_same(merge.interpolate({"ids": value}, {"ids": value.clone()}, 0.5), {"ids": value})


def counted(*counts: int) -> list[dict[str, Tensor]]:
    return [{"bn.num_batches_tracked": torch.tensor(count), "w": torch.tensor([1.0])} for count in counts]


def test_3_batchnorm_counters_take_the_maximum() -> None:
    a, b, c = counted(3, 2**53 + 1, 5)
    assert merge.interpolate(a, b, 0.5)["bn.num_batches_tracked"].item() == 2**53 + 1
    assert merge.average([b, c, a])["bn.num_batches_tracked"].item() == 2**53 + 1
    assert merge.task_arithmetic(a, [c], 0.5)["bn.num_batches_tracked"].item() == 5


# -- 4. ties, and the order of inputs --------------------------------------------------------------------------------


def test_4_ties_stay_ties() -> None:
    a, b = weights(0), weights(1)
    merged = merge.interpolate(a, b, 0.3)
    assert merged["encoder.embed.weight"].data_ptr() == merged["decoder.output.weight"].data_ptr()
    assert torch.equal(
        merged["encoder.embed.weight"], torch.lerp(a["encoder.embed.weight"], b["encoder.embed.weight"], 0.3)
    )


def test_4_ties_are_merged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counting(tensors: list[Tensor], *, name: str, ratio: float) -> Tensor:
        calls.append(name)
        return torch.lerp(tensors[0], tensors[1], ratio)

    from dataclasses import replace

    monkeypatch.setitem(METHODS, "interpolate", replace(METHODS["interpolate"], code=counting))
    merge.interpolate(weights(0), weights(1), 0.3)
    assert calls.count("encoder.embed.weight") == 1
    assert "decoder.output.weight" not in calls


def test_4_a_tie_survives_where_the_other_input_holds_equal_values() -> None:
    shared, other = torch.randn(2, 3).unbind()
    tied, untied = {"x": shared, "y": shared}, {"x": other, "y": other.clone()}
    merged = merge.interpolate(tied, untied, 0.3)
    assert merged["x"].data_ptr() == merged["y"].data_ptr()
    assert torch.equal(merged["x"], torch.lerp(shared, other, 0.3))
    backwards = merge.interpolate(untied, tied, 0.3)
    assert torch.equal(backwards["x"], backwards["y"])
    assert torch.equal(backwards["x"], torch.lerp(other, shared, 0.3))


@pytest.mark.parametrize("swapped", [False, True])
def test_4_a_tie_ends_where_the_other_input_holds_different_values(swapped: bool) -> None:
    shared, x, y = torch.randn(3, 4).unbind()
    states = [{"x": shared, "y": shared}, {"x": x, "y": y}]
    first, second = reversed(states) if swapped else states
    merged = merge.interpolate(first, second, 0.3)
    for name in "xy":
        assert torch.equal(merged[name], torch.lerp(first[name], second[name], 0.3))
    assert merged["x"].data_ptr() != merged["y"].data_ptr()


def test_4_views_of_one_storage_are_no_ties() -> None:
    storage = torch.randn(6)
    a = {"x": storage[:3], "y": storage[3:], "all": storage}
    b = {name: torch.randn_like(value) for name, value in a.items()}
    merged = merge.interpolate(a, b, 0.5)
    assert_same(merged, {name: torch.lerp(a[name], b[name], 0.5) for name in a})


def test_4_names_come_in_the_order_of_the_first_input() -> None:
    a = {name: torch.randn(2) for name in ("z", "a", "m", "b")}
    b = {name: torch.randn(2) for name in ("b", "m", "a", "extra", "z")}
    assert list(merge.interpolate(a, b, 0.5, policy=Policy(missing="keep-first"))) == ["z", "a", "m", "b", "extra"]


# -- 5. names and shapes (the texts are tested in test_state_dict) ---------------------------------------------------


def test_5_nothing_is_repaired_silently() -> None:
    full, lacking = one(1.0) | {"audio.w": torch.tensor([2.0])}, one(3.0)
    with pytest.raises(MergeError, match=r"second lacks 1 tensor: audio\.w"):
        merge.interpolate(full, lacking, 0.5)
    with pytest.raises(MergeError, match=r"first lacks 1 tensor: audio\.w"):
        merge.interpolate(lacking, full, 0.5)
    kept = {"w": torch.tensor([2.0]), "audio.w": torch.tensor([2.0])}
    assert_same(merge.interpolate(full, lacking, 0.5, policy=Policy(keep=("audio.*",))), kept)
    assert_same(merge.interpolate(full, lacking, 0.5, policy=Policy(missing="keep-first")), kept)
    assert_same(merge.interpolate(lacking, full, 0.5, policy=Policy(missing="keep-first")), kept)
    assert_same(merge.interpolate(full, lacking, 0.5, policy=Policy(drop=("audio.*",))), one(2.0))


@pytest.mark.parametrize("lacking", range(4))
def test_5_four_equal_models_average_to_themselves_when_one_lacks_a_tensor(lacking: int) -> None:
    models = [{"w": torch.full((3,), 8.0), "audio.w": torch.full((2,), 8.0)} for _ in range(4)]
    del models[lacking]["audio.w"]
    merged = merge.average(models, policy=Policy(missing="keep-first"))
    assert_same(merged, {"w": torch.full((3,), 8.0), "audio.w": torch.full((2,), 8.0)})


# -- 6. ratios are i / n ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("points", [2, 3, 5, 11, 21, 101])
def test_6_ratios_are_quotients_of_integers(points: int) -> None:
    made = merge.ratios(points)
    assert made == [i / (points - 1) for i in range(points)]
    assert len(set(made)) == points
    assert (made[0], made[-1]) == (0.0, 1.0)


def test_6_ratios_are_not_sums_of_steps() -> None:
    assert merge.ratios(11)[3] == 0.3  # 3 * 0.1 is 0.30000000000000004


@pytest.mark.parametrize("points", [1, 0, -3])
def test_6_a_sweep_has_two_points_or_more(points: int) -> None:
    with pytest.raises(MergeError, match=f"at least 2 points and at most 1,000,000, not {points}"):
        merge.ratios(points)


# -- 7. BatchNorm statistics are a named policy ----------------------------------------------------------------------


def test_7_statistics_are_averaged_by_default() -> None:
    a, b = weights(0), weights(1)
    merged = merge.interpolate(a, b, 0.25)
    for name in ("encoder.image.bn.running_mean", "encoder.image.bn.running_var"):
        assert torch.equal(merged[name], torch.lerp(a[name], b[name], 0.25))


@pytest.mark.parametrize("source", ["first", "second"])
def test_7_statistics_from_a_named_input(source: str) -> None:
    states = {"first": weights(0), "second": weights(1)}
    merged = merge.interpolate(states["first"], states["second"], 0.25, policy=Policy(batchnorm=f"from:{source}"))
    for name, value in merged.items():
        if "running_" in name or name.endswith("num_batches_tracked"):
            assert torch.equal(value, states[source][name]), name
        elif name.endswith("weight"):
            assert torch.equal(value, torch.lerp(states["first"][name], states["second"][name], 0.25)), name


def test_7_endpoints_are_the_originals_with_their_counters() -> None:
    a, b = weights(0), weights(1)
    for function in (merge.interpolate, merge.slerp):
        assert_same(function(a, b, 0.0), a)
        assert_same(function(a, b, 1.0), b)
    assert_same(merge.average([b, a, b], weights=[0, 1, 0]), a)
    assert_same(merge.task_arithmetic(a, [b], 0.0), a)
    assert_same(merge.task_arithmetic(b, [a], 1.0), a)


@pytest.mark.parametrize("policy", ["from:nobody", "from", "recalibrate", "mean", ""])
def test_7_an_unknown_policy_is_an_error(policy: str) -> None:
    with pytest.raises(MergeError, match="must be 'average' or 'from:' and one of first, second"):
        merge.interpolate(weights(0), weights(1), 0.25, policy=Policy(batchnorm=policy))


# -- 8. determinism and 9. one result on every path: test_engine -----------------------------------------------

# -- values that are not finite --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("values", "count"), [((NAN, 1.0), 1), ((INF, -INF), 2), ((INF, 1.0), 1), ((NAN, INF), 2)])
def test_values_that_are_not_finite_are_counted_and_refused(values: tuple[float, float], count: int) -> None:
    with pytest.raises(MergeError, match=rf"^w: {count} infinite or NaN values .*allow_nonfinite"):
        merge.interpolate(one(*values), one(1.0, 1.0), 0.5)
    merged = merge.interpolate(one(*values), one(1.0, 1.0), 0.5, policy=Policy(allow_nonfinite=True))["w"]
    assert int((~torch.isfinite(merged)).sum()) == count


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2])
def test_values_that_are_not_finite_are_seen_in_every_dtype(dtype: torch.dtype) -> None:
    with pytest.raises(MergeError, match=r"^w: 1 infinite"):
        merge.interpolate(one(INF, 1.0, dtype=dtype), one(1.0, 1.0, dtype=dtype), 0.5)


def test_values_that_are_not_finite_are_seen_in_complex_tensors() -> None:
    broken = {"w": torch.tensor([complex(1, INF), 1 + 1j])}
    with pytest.raises(MergeError, match=r"^w: 1 infinite"):
        merge.interpolate(broken, {"w": torch.ones(2, dtype=torch.complex64)}, 0.5)


def test_large_finite_values_whose_sum_overflows_are_fine() -> None:
    large = one(*[3e38] * 10)
    assert_same(merge.interpolate(large, copied(large), 0.5), large)


def test_a_result_that_overflows_its_dtype_is_refused() -> None:
    with pytest.raises(MergeError, match=r"^w: 1 infinite"):
        merge.interpolate(one(1e5, 1.0), one(1e5, 1.0), 0.5, policy=Policy(dtype=torch.float16))


def test_broken_values_in_kept_tensors_are_refused_as_any_and_copied_if_allowed() -> None:
    a, b = one(1.0) | {"mask": torch.tensor([0.0, -INF])}, one(3.0) | {"mask": torch.tensor([0.0, -INF])}
    with pytest.raises(MergeError, match="mask: 1 infinite or NaN values in the result; pass allow_nonfinite=True"):
        merge.interpolate(a, b, 0.5, policy=Policy(keep=("mask",)))
    merged = merge.interpolate(a, b, 0.5, policy=Policy(keep=("mask",), allow_nonfinite=True))
    assert_same(merged, one(2.0) | {"mask": torch.tensor([0.0, -INF])})
