"""Methods on matrices and masks: recordings of the papers' programs, what vanishing singular values do, laws."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import merge
from merge import METHODS, MergeError
from merge.methods.matrices import polar
from tests import DATA

FOLDER = DATA / "fusionbench"
# WUDI's authors descend in these and leave everything else at the base.
WUDI = ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
# The recordings by method: our name of it, and its parameters in our words.
OURS: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
    "tsv": ("tsv", {}, {}),
    "isoc": ("iso-c", {}, {}),
    "isocts": ("iso-cts", {}, {}),
    "wudi": ("wudi", {"iterations": "steps"}, {"scale": {**{f"*{end}": 1 for end in WUDI}, "*": 0}}),
    "wudi_fb": ("wudi", {"iterations": "steps"}, {}),
    "emr": ("emr", {}, {}),
    "consensus": ("consensus", {"prun_thre_k": "k", "use_ties": "change"}, {"threshold": "published"}),
}
LAWFUL = ("tsv", "iso-c", "iso-cts", "wudi", "emr", "consensus")


@cache
def recordings() -> dict[str, dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = json.loads((FOLDER / "recipes.json").read_text())
    return {
        name: entry
        for name, entry in entries.items()
        if entry["method"] in OURS and (FOLDER / entry["files"]["merged"]).exists()
    }


@cache
def loaded(file: str) -> dict[str, Tensor]:
    return merge.load_checkpoint(FOLDER / file)


@cache
def ours(recording: str, **parameters: Any) -> dict[str, Tensor]:
    entry = recordings()[recording]
    name, words, more = OURS[entry["method"]]
    recorded: dict[str, Any] = entry["parameters"]
    given: dict[str, Any] = {words.get(key, key): value for key, value in recorded.items()}
    given |= {"change": "ties"} if "change" in given else {}
    given |= {**more, **parameters}
    return merge.merge_with(name, [loaded(file) for file in entry["experts"]], loaded(entry["base"]), **given)


@pytest.mark.parametrize("recording", list(recordings()))
def test_as_the_papers_program_where_its_result_is_sound(recording: str) -> None:
    entry, made, wanted = recordings()[recording], ours(recording), loaded(f"{recording}.safetensors")
    other = {*entry.get("not_comparable", {}), *entry.get("nonfinite_in_reference", ())}
    if entry["method"] == "tsv":
        other |= {"model.head.weight", "model.head_row.weight"}  # fewer rows than experts: their change is lost there
    assert set(made) == set(wanted)
    for name, value in wanted.items():
        assert made[name].isfinite().all()
        if name not in other:
            torch.testing.assert_close(made[name], value, rtol=0, atol=entry["atol"])


@pytest.mark.parametrize("recording", [name for name in recordings() if name.startswith(("emr", "consensus"))])
def test_the_model_of_an_expert_as_the_papers_program_has_it(recording: str) -> None:
    entry = recordings()[recording]
    how: dict[str, Any] = {"rescaler": "tensors"} if recording.startswith("emr") else {"scale": 1.0}
    for place, file in enumerate(f"{recording}.model{place}.safetensors" for place in range(3)):
        if (FOLDER / file).exists():
            made = ours(recording, expert=place, **how)
            for name, value in loaded(file).items():
                torch.testing.assert_close(made[name], value, rtol=0, atol=entry["atol"])


def test_where_singular_values_vanish_null_directions_are_dropped() -> None:
    base = loaded("inputs/net_base.safetensors")
    for key, change in loaded("recommended_changes.safetensors").items():
        method, name = key.split(":")
        made, scale = (ours("tsv_merge"), 1) if method == "tsv" else (ours("iso_c_scale1.3"), 1.3)
        torch.testing.assert_close(made[name] - base[name], scale * change, rtol=0, atol=5e-7)


def test_fewer_rows_than_experts_are_averaged() -> None:
    entry = recordings()["tsv_merge"]
    experts, base = [loaded(file) for file in entry["experts"]], loaded(entry["base"])
    mean = merge.average(experts)
    for name in ("model.head.weight", "model.head_row.weight"):
        assert not torch.equal(ours("tsv_merge")[name], base[name])
        torch.testing.assert_close(ours("tsv_merge")[name], mean[name])


def test_an_expert_that_changed_nothing_has_no_part_in_wudi() -> None:
    base, a, b = (torch.randn(6, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    both, three = (merged("wudi", base, experts, steps=20, learning_rate=0.01) for experts in ([a, b], [a, base, b]))
    torch.testing.assert_close(both, three)
    assert not torch.equal(both, merged("wudi", base, [a, b], steps=0))


# -- laws ------------------------------------------------------------------------------------------------------------


def merged(method: str, base: Tensor, experts: list[Tensor], **parameters: Any) -> Tensor:
    given = {"scale": 1.0, **({"steps": 5} if method == "wudi" else {}), **parameters}
    given |= {"k": min(2, len(experts))} if method == "consensus" and "k" not in given else {}
    return merge.merge_with(method, [{"w": expert} for expert in experts], {"w": base}, **given)["w"]


def made(kind: str, count: int = 3, shape: tuple[int, ...] = (9, 7)) -> tuple[Tensor, list[Tensor]]:
    """A base and experts of a kind of change."""
    generator = torch.Generator().manual_seed(5)
    base = torch.randn(shape, generator=generator)
    changes = [0.1 * torch.randn(shape, generator=generator) for _ in range(count)]
    if kind == "low rank":
        changes = [torch.outer(change[:, 0], change[0]) for change in changes]
    elif kind == "tiny":
        changes[1] *= 1e-30
        base.zero_()
    elif kind == "identical":
        changes[1] = changes[0]
    elif kind == "unchanged":
        changes[1] = torch.zeros(shape)
    elif kind == "cancelling":
        changes[1:] = [-changes[0], *changes[2:]]
    return base, [base + change for change in changes]


KINDS = ["full", "low rank", "tiny", "identical", "unchanged", "cancelling"]


@pytest.mark.parametrize("method", LAWFUL)
def test_the_order_of_the_experts_plays_no_part(method: str) -> None:
    for kind in KINDS:
        base, experts = made(kind)
        first = merged(method, base, experts)
        turned = merged(method, base, [experts[2], experts[0], experts[1]])
        torch.testing.assert_close(first, turned, rtol=0, atol=1e-6)
        assert first.isfinite().all()
        assert not torch.equal(first, base)
        assert torch.equal(merged(method, base, experts, scale=0), base)


@pytest.mark.parametrize("method", ["tsv", "iso-c", "iso-cts", "consensus"])
def test_an_ulp_of_noise_moves_the_result_by_no_more_than_rounding(method: str) -> None:
    for kind in ("full", "low rank", "identical", "unchanged"):
        base, experts = made(kind)
        ends = torch.randn(3, *base.shape, generator=torch.Generator().manual_seed(1)).sign() * 9
        ends[1] = ends[0] if kind == "identical" else ends[1]
        near = [torch.nextafter(expert, end) for expert, end in zip(experts, ends, strict=True)]
        torch.testing.assert_close(merged(method, base, experts), merged(method, base, near), rtol=0, atol=5e-5)


@pytest.mark.parametrize("method", ["tsv", "wudi", "emr", "consensus"])
def test_one_expert_is_that_expert(method: str) -> None:
    base, experts = made("full", 1)
    torch.testing.assert_close(merged(method, base, experts), experts[0])
    assert torch.equal(merged("tsv", base, experts), experts[0])


def test_identical_experts_count_once() -> None:
    base, (expert, *_) = made("full")
    for count in (2, 3):
        top = merged("tsv", base, [expert] * count)
        u, s, v = torch.linalg.svd(expert - base, full_matrices=False)
        kept = 7 // count
        torch.testing.assert_close(top - base, u[:, :kept] * s[:kept] @ v[:kept], rtol=0, atol=2e-6)
    base, (expert, *_) = made("low rank")
    torch.testing.assert_close(merged("tsv", base, [expert] * 3), expert, rtol=0, atol=2e-6)


@pytest.mark.parametrize("method", ["tsv", "iso-c", "iso-cts"])
def test_convolutions_and_what_is_excluded_are_averaged(method: str) -> None:
    base, experts = made("full", shape=(4, 3, 2, 2))
    torch.testing.assert_close(merged(method, base, experts), sum(experts) / 3)
    base, experts = made("full")
    for exclude in ("w", ["other", "[uvw]"]):
        torch.testing.assert_close(merged(method, base, experts, exclude=exclude), sum(experts) / 3)
    assert torch.equal(merged(method, base, experts, exclude=""), merged(method, base, experts))


@pytest.mark.parametrize("fraction", [0, 0.2, 0.4, 0.5, 0.8, 1])
def test_the_directions_of_iso_cts_are_as_many_as_there_are(fraction: float) -> None:
    for rank in (1, 2, 5, 8):
        for count in (1, 2, 3, 7):
            base, experts = made("full", count, (rank, 9))
            change = merged("iso-cts", base, experts, common_space_fraction=fraction) - base
            values = torch.linalg.svdvals(change)
            torch.testing.assert_close(values, values.mean().expand(rank), rtol=1e-3, atol=0)
    assert torch.allclose(merged("iso-cts", base, experts, common_space_fraction=1), merged("iso-c", base, experts))


def test_a_polar_factor_has_orthonormal_columns_or_rows() -> None:
    for shape in ((7, 4), (4, 7), (5, 0)):
        factor = polar(torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64), 1e-6)
        small = factor.T @ factor if shape[0] > shape[1] else factor @ factor.T
        torch.testing.assert_close(small, torch.eye(min(shape), dtype=torch.float64))


def test_more_masks_than_experts_are_refused() -> None:
    base, experts = made("full", 2)
    with pytest.raises(MergeError, match="k is 3, and no entry is in the masks of more than all 2 experts: at most 2"):
        merged("consensus", base, experts, k=3)
    plain = merge.task_arithmetic({"w": base}, [{"w": expert} for expert in experts], 0.3)["w"]
    torch.testing.assert_close(merged("consensus", base, experts, k=0, scale=0.3), plain)


def test_an_experts_model_keeps_its_norm_and_is_named() -> None:
    base, experts = made("full")
    states = {name: {"w": expert, "b": expert[0]} for name, expert in zip("abc", experts, strict=True)}
    start = {"w": base, "b": base[0]}
    one = merge.merge_with("emr", states, start, expert="b")
    own, left = (sum((state[key] - start[key]).abs().sum() for key in start) for state in (states["b"], one))
    torch.testing.assert_close(own, left)
    assert all(torch.equal(one[key], merge.merge_with("emr", states, start, expert=1)[key]) for key in one)
    with pytest.raises(MergeError, match="expert must be one of the inputs, not 'd'; known are a, b, c"):
        merge.merge_with("emr", states, start, expert="d")
    unchanged = merge.merge_with("emr", {**states, "d": start}, start, expert="d")
    assert torch.equal(unchanged["w"], base)


def test_patterns_are_words_or_lists_of_them() -> None:
    base, experts = made("full", 2)
    with pytest.raises(MergeError, match="exclude must be globs or parts of tensors' names, one or a list, not 3"):
        merged("tsv", base, experts, exclude=3)
    assert METHODS["tsv"].parameters["exclude"].range == "globs or parts of names"
    assert METHODS["wudi"].parameters["exclude"].usual == "none"


def test_tensors_in_memory_are_merged_side_by_side_with_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    states = [{str(i): torch.randn(20, 12, generator=generator) for i in range(9)} for _ in range(3)]
    alone = merge.merge_with("iso-cts", states[1:], states[0])
    monkeypatch.setattr("merge.engine.workers.WHOLE", 64)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        together = merge.merge_with("iso-cts", states[1:], states[0])
        assert torch.get_num_threads() == 3
        with pytest.raises(MergeError, match="infinite or NaN"):
            merge.merge_with("iso-cts", [states[1], {**states[2], "3": states[2]["3"] * float("nan")}], states[0])
    finally:
        torch.set_num_threads(before)
    assert list(alone) == list(together)
    assert all(torch.equal(alone[name], together[name]) for name in alone)
