"""mergekit's recorded results and how near ours are: one entry a recipe, which is also the table in docs/methods.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests import DATA

FOLDER = DATA / "mergekit"

# Why a tensor may differ from mergekit's, and what then holds (checked in test_methods_golden.py).
REASONS = {
    "zero": "a zero vector spans no angle: a straight line here, a quarter circle in mergekit",
    "clamped": "the experts pull apart: the base here; mergekit's negative ratio walks away from both",
    "cut": "equal magnitudes at the cut: the lowest index is kept here, any in mergekit",
    "row": "a filter is one row here; mergekit looks along one short axis of it",
    "opposite": "two of three directions are opposite, which magnifies rounding: 9 steps",
    "once": "float32 sums rounded once here, rounded to bfloat16 before float32 in mergekit",
    "dtype": "keeps its dtype here, becomes float32 in mergekit",
    "error": "refused here with a message; mergekit writes a file",
    "fails": "mergekit itself fails on this recipe",
}


@dataclass(frozen=True)
class Golden:
    """How near our result is: at most `steps` from mergekit's, but for the tensors that differ for a reason.

    A step is the dtype's epsilon times the largest magnitude of the tensor in the inputs. 0 is bitwise. With `inner`
    the method's function is called in the stored dtype, as mergekit computes; else the recipe runs from file to file,
    in float32. `dtype` is what the recipe must say here beyond mergekit's.
    """

    steps: float = 0
    but: Mapping[str, str] = field(default_factory=dict[str, str])
    inner: bool = False
    dtype: str | None = None
    note: str = ""


_ZERO = {"zero_a": "zero", "zero_b": "zero"}
_APART = dict.fromkeys(("anti", "conv", "magtie", "signtie", "w2d"), "clamped")
_ARC = "other order of rounding"

GOLDENS: dict[str, Golden] = {
    "linear_n_fp32": Golden(),
    "linear_3way_unnorm_weights_fp32": Golden(1, note="equal elements stay equal: 1 ulp in `ident`"),
    "linear_n_bf16": Golden(),
    "linear_3way_unnorm_weights_bf16": Golden(),
    "linear_n_fp16": Golden(),
    "linear_3way_unnorm_weights_fp16": Golden(),
    "linear_nonorm": Golden(),
    "linear_norm_sum1.4": Golden(1, note="equal elements stay equal: 1 ulp in `ident`"),
    "linear_sum0_norm": Golden(but={"": "error"}),
    "linear_mixed_bf16_fp32": Golden(1, dtype="float32", note="mixed dtypes need `dtype`"),
    "linear_fp32_dtype_bf16": Golden(1, note="`dtype` is the result's; mergekit rounds the inputs first"),
    "linear_fp32_outdtype_bf16": Golden(),
    "linear_bf16_outdtype_fp32": Golden(but={"": "once"}),
    "linear_gradient_list_in_pytorch": Golden(),
    "passthrough_scale": Golden(),
    **{f"slerp_t{end}_{dtype}": Golden() for dtype in ("fp32", "bf16", "fp16") for end in ("0.0", "1.0")},
    "slerp_t0.25_fp32": Golden(2, _ZERO, note=_ARC),
    "slerp_t0.5_fp32": Golden(2, _ZERO, note=_ARC),
    "slerp_t0.5_bf16": Golden(0, _ZERO),
    "slerp_t0.25_fp16": Golden(0, _ZERO),
    "slerp_t0.5_fp16": Golden(0, _ZERO),
    "nuslerp_flat1_row0": Golden(2, _ZERO, note=_ARC),
    "nuslerp_flat0_row0": Golden(2, _ZERO, note=_ARC),
    "nuslerp_flat0_row1": Golden(2, _ZERO, note=_ARC),
    "nuslerp_base": Golden(2, note=_ARC),
    "nuslerp_sum0": Golden(but={"": "error"}),
    "multislerp": Golden(but={"": "fails"}),
    "multislerp_base": Golden(but={"": "fails"}),
    "karcher_2": Golden(2, note=_ARC),
    "karcher_3": Golden(2, {"anti": "opposite"}, note=_ARC),
    "karcher_bf16": Golden(3, {"scalar": "dtype"}, note="float32 here, bfloat16 in mergekit"),
    "ta": Golden(1, note="task vectors are added to the base one by one"),
    "ta_norm": Golden(1, note="task vectors are added to the base one by one"),
    "ta_lambda": Golden(1, note="task vectors are added to the base one by one"),
    "ta_bf16": Golden(1, note="float32 here, bfloat16 in mergekit"),
    "ties": Golden(),
    "ties_nonorm": Golden(),
    "ties_int8": Golden(note="`int8_mask` changes no value"),
    "ties_rescale": Golden(2, note="L1 norms are summed in float64 here"),
    "ties_density1": Golden(),
    "ties_density0": Golden(),
    "ties_tiny_density": Golden(),
    "ties_neg_weight": Golden(),
    "ties_bf16": Golden(0, dict.fromkeys(("anti", "conv", "w2d"), "cut"), inner=True),
    "ties_fp16": Golden(0, inner=True),
    "breadcrumbs": Golden(0, {"magtie": "cut", "signtie": "cut"}),
    "breadcrumbs_default_gamma": Golden(0, {"magtie": "cut", "signtie": "cut"}),
    "breadcrumbs_ties": Golden(0, {"magtie": "cut"}),
    "dare_linear_seed42": Golden(2, inner=True, note="L1 norms are summed in float64 here"),
    "dare_linear_norescale_seed42": Golden(0, inner=True),
    "della_seed42": Golden(2, {"conv": "row"}, inner=True, note="`scalar` is merged here, an error in mergekit"),
    "della_linear_seed42": Golden(2, {"conv": "row"}, inner=True, note="`scalar` is merged here, an error in mergekit"),
    "model_stock_2": Golden(1, _APART, note=_ARC),
    "model_stock_filterwise": Golden(
        1, {**_APART, "conv": "row", "emb": "clamped"}, note="rows whose experts pull apart stay at the base"
    ),
    "model_stock_bf16": Golden(1, _APART, note="float32 here, bfloat16 in mergekit"),
    "sce": Golden(2, note="energies are summed in float64 here"),
    "nearswap": Golden(),
    "arcee_fusion": Golden(),
    "ram": Golden(),
    "ramplus_tl": Golden(),
}


@cache
def recipes() -> dict[str, Any]:
    """What mergekit was told, by recipe."""
    return json.loads((FOLDER / "recipes.json").read_text())


@cache
def _tensors(file: str) -> dict[str, dict[str, Tensor]]:
    grouped: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(FOLDER / file).items():
        owner, _, name = key.partition("/")
        grouped.setdefault(owner, {})[name] = value
    return grouped


def input_state(name: str) -> dict[str, Tensor]:
    """An input as `a_fp32`."""
    return _tensors("inputs.safetensors")[name]


def output_state(recipe: str) -> dict[str, Tensor]:
    """What mergekit wrote."""
    return _tensors("outputs.safetensors").get(recipe, {})


def write_inputs(folder: Path) -> None:
    """The input files, as the recipes name them."""
    (folder / "inputs").mkdir()
    for name, state in _tensors("inputs.safetensors").items():
        save_file(state, folder / "inputs" / f"{name}.safetensors")


def sources(recipe: str) -> list[str]:
    """The inputs of a recipe, the base first, without what is listed twice."""
    entry = recipes()[recipe]
    if "models" not in entry:
        return ["base_fp32", "a_fp32", "b_fp32"]
    paths = [entry.get("base_model"), *(model["model"] for model in entry["models"])]
    return list(dict.fromkeys(Path(path).stem for path in paths if path))


def steps_between(ours: Tensor, theirs: Tensor, inputs: list[Tensor]) -> float:
    """The largest difference in steps (see `Golden`)."""
    largest = max(float(value.double().abs().max()) for value in inputs)
    difference = float((ours.double() - theirs.double()).abs().max())
    return difference / (torch.finfo(theirs.dtype).eps * largest) if difference else 0.0


def ulps_between(ours: Tensor, theirs: Tensor) -> int:
    """The largest difference in units in the last place, element by element."""
    integers = torch.int32 if ours.dtype == torch.float32 else torch.int16
    ordered = [value.contiguous().view(integers).long() for value in (ours, theirs)]
    lowest = torch.iinfo(integers).min
    first, second = (torch.where(value < 0, lowest - value, value) for value in ordered)
    return int((first - second).abs().max())


def nearness(golden: Golden) -> str:
    if "" in golden.but:
        return "-"
    return "bitwise" if golden.steps == 0 else f"{golden.steps:g} step{'s' * (golden.steps != 1)}"


def summary(chosen: list[str]) -> str:
    """How near several recipes are, in a few words."""
    if not chosen:
        return "not in mergekit's recordings"
    found = [GOLDENS[recipe] for recipe in chosen]
    bitwise = sum(golden.steps == 0 and "" not in golden.but for golden in found)
    parts = [f"{bitwise} of {len(found)} bitwise"]
    steps = max((golden.steps for golden in found), default=0)
    if steps:
        parts.append(f"the rest within {steps:g} step{'s' * (steps != 1)}")
    if any(golden.but for golden in found):
        parts.append("but for " + ", ".join(sorted({reason for golden in found for reason in golden.but.values()})))
    return "; ".join(parts)


def rows() -> list[list[str]]:
    """The table of the documentation: recipe, distance, exceptions, remarks."""
    found: list[list[str]] = []
    for recipe, golden in GOLDENS.items():
        groups: dict[str, list[str]] = {}
        for name, reason in golden.but.items():
            groups.setdefault(reason, []).append(f"`{name}`" if name else "all")
        but = "; ".join(f"{reason}: {', '.join(names)}" for reason, names in groups.items())
        inner = "function in the stored dtype" if golden.inner and "16" in recipe else ""
        found.append([f"`{recipe}`", nearness(golden), but, "; ".join(filter(None, (golden.note, inner)))])
    return found
