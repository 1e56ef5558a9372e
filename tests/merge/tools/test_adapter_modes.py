"""Adapters merged by methods of task vectors and by KnOTS: recordings, what the same merge of whole weights gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import merge
from merge import MergeError
from merge.tools.adapters.folder import Adapter
from tests import DATA
from tests.merge.adapters import SHAPES, base_of, change, lora
from tests.merge.shell import command, done

FOLDER = DATA / "fusionbench"
RECORDINGS = {
    name: entry
    for name, entry in json.loads((FOLDER / "recipes.json").read_text()).items()
    if entry["method"].startswith("knots")
}
ELECT = {"sum_of_values": "sums", "sum_of_signs": "signs"}


def recorded_adapter(file: str, folder: Path) -> Adapter:
    """A recorded adapter in a folder as peft writes it; alpha / r is 1."""
    tensors = load_file(FOLDER / file)
    ranks = {name.removesuffix(".lora_A.weight"): value.shape[0] for name, value in tensors.items() if "lora_A" in name}
    rank = max(ranks.values())
    patterns = {name.removeprefix("base_model.model."): value for name, value in ranks.items()}
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "rank_pattern": patterns, "alpha_pattern": patterns}
    path = folder / Path(file).stem
    path.mkdir()
    save_file(tensors, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps(config))
    return merge.open_adapter(path)


@pytest.mark.parametrize("recording", RECORDINGS)
def test_as_the_program_of_knots(recording: str, tmp_path: Path) -> None:
    entry = RECORDINGS[recording]
    given, wanted = entry["parameters"], load_file(FOLDER / entry["files"]["merged"])
    adapters = [recorded_adapter(file, tmp_path) for file in entry["adapters"]]
    base = load_file(FOLDER / entry["adapters"][0].replace("adapter0", "base"))
    how: dict[str, Any] = {
        "density": given["topK"] / 100,
        "scale": given["scaling_coeffs"],
        "normalize": given["merging_type"] == "mean",
        "elect": "none" if given["merge_method"] == "tv" else ELECT[given["sign_resolve_mode"]],
        "side": "outputs" if given["concat_across_output"] else "inputs",
    }
    made = merge.apply_adapters(base, adapters, mode="knots", **how)
    alone = merge.merge_adapters(adapters, mode="knots", **how)
    assert alone.discarded < 1e-20  # of rank as before
    for name, value in wanted.items():
        torch.testing.assert_close(made[name], value, rtol=0, atol=entry["atol"])
        again = base[name] + change(alone.modules[name.removesuffix(".weight")])
        torch.testing.assert_close(again.float(), value, rtol=0, atol=1e-6)


@pytest.fixture
def adapters(tmp_path: Path) -> list[Adapter]:
    folders = [lora(tmp_path / "vqa", 0), lora(tmp_path / "caption", 1, 3, {"encoder.layers.0.q": (6, 5)})]
    return [merge.open_adapter(folder) for folder in folders]


def wholes(adapters: list[Adapter], base: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Every adapter merged into its base by itself."""
    return [merge.apply_adapters(base, [adapter], weights=[1.0]) for adapter in adapters]


MODES: dict[str, dict[str, Any]] = {
    "ties": {"density": 0.4},
    "dare-linear": {"density": 0.5, "seed": 3},
    "consensus": {"scale": 0.5, "k": 1},
    "pcb": {"density": 0.3},
}


@pytest.mark.parametrize("mode", MODES)
def test_a_method_merges_changes_as_it_merges_whole_weights(mode: str, adapters: list[Adapter]) -> None:
    base = {f"{module}.weight": torch.zeros(shape) for module, shape in SHAPES.items()}
    made = merge.apply_adapters(base, adapters, mode=mode, **MODES[mode])
    wanted = merge.merge_with(mode, wholes(adapters, base), base, **MODES[mode])
    for name, value in wanted.items():
        torch.testing.assert_close(made[name], value, rtol=1e-5, atol=1e-6)


def test_alone_a_change_is_cut_to_a_rank_and_says_what_is_left_out(adapters: list[Adapter]) -> None:
    whole = merge.merge_adapters(adapters, mode="tsv")
    assert whole.discarded < 1e-12  # as many directions as before
    cut = merge.merge_adapters(adapters, mode="ties", density=0.3, rank=2)
    base = base_of()
    exact = merge.apply_adapters(base, adapters, mode="ties", density=0.3)
    squares = [(exact[f"{m}.weight"] - base[f"{m}.weight"]).double() for m in SHAPES]
    lost = sum(torch.linalg.svdvals(square)[2:].square().sum() for square in squares)
    assert cut.rank == 2
    assert cut.discarded == pytest.approx(float(lost / sum(square.square().sum() for square in squares)), rel=1e-4)


def test_weights_are_the_methods_own(adapters: list[Adapter]) -> None:
    base = base_of()
    one = merge.apply_adapters(base, adapters, mode="ties", density=1, weights=[1, 0])
    for name, value in merge.apply_adapters(base, adapters[:1], weights=[1]).items():
        torch.testing.assert_close(one[name], value)
    rules = {"encoder.*": 0, "*": 1}
    part = merge.apply_adapters(base, adapters, mode="ties", density=1, scale=rules)
    assert torch.equal(part["encoder.layers.0.q.weight"], base["encoder.layers.0.q.weight"])
    assert not torch.equal(part["decoder.layers.0.v.weight"], base["decoder.layers.0.v.weight"])


def test_matrices_that_are_turned_in_the_base(tmp_path: Path) -> None:
    turned = [merge.open_adapter(lora(tmp_path / name, seed, fan_in_fan_out=True)) for seed, name in enumerate("ab")]
    plain = [merge.open_adapter(lora(tmp_path / f"plain-{name}", seed)) for seed, name in enumerate("ab")]
    zeros = {f"{module}.weight": torch.zeros(shape) for module, shape in SHAPES.items()}
    hows: dict[str, dict[str, Any]] = {"knots": {"density": 0.5}, "tsv": {}, "ties": {"density": 0.5}}
    for mode, given in hows.items():
        one = merge.apply_adapters(
            {name: value.T.contiguous() for name, value in zeros.items()}, turned, mode=mode, **given
        )
        other = merge.apply_adapters(zeros, plain, mode=mode, **given)
        for name, value in other.items():
            torch.testing.assert_close(one[name].T, value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"mode": "tie"}, "mode 'tie': must be one of exact, factors, knots, .*; did you mean 'ties'"),
        ({"mode": "knots", "densty": 1}, "mode knots has no parameter 'densty'; did you mean 'density'"),
        ({"mode": "tsv", "weights": [1, 1]}, "mode tsv has no parameter 'weights'"),
        ({"mode": "exact", "density": 1}, "mode exact has no parameter 'density'"),
        ({"mode": "ties"}, "ties needs the parameter 'density'"),
        ({"mode": "knots", "elect": "all"}, "elect must be one of sums, signs, none"),
    ],
    ids=str,
)
def test_arguments_that_are_refused(adapters: list[Adapter], arguments: dict[str, Any], told: str) -> None:
    for run in (merge.merge_adapters, lambda *given, **more: merge.apply_adapters(base_of(), *given, **more)):
        with pytest.raises(MergeError, match=told):
            run(adapters, **arguments)


def test_the_command(adapters: list[Adapter], tmp_path: Path) -> None:
    folders = [str(tmp_path / name) for name in ("vqa", "caption")]
    told = done("adapters", *folders, "--mode", "knots", "-p", "density=0.5", "-o", str(tmp_path / "out")).out
    assert "knots of 1.00 vqa + 1.00 caption, rank 5, 2 modules; left out 0.000% of the energy" in told
    made = merge.open_adapter(tmp_path / "out")
    wanted = merge.merge_adapters(adapters, mode="knots", density=0.5)
    for module, factors in wanted.modules.items():
        assert torch.equal(made.modules[module].b, factors.b)
    merge.save_checkpoint(base_of(), tmp_path / "base.safetensors")
    where = ["--base", str(tmp_path / "base.safetensors"), "-o", str(tmp_path / "whole.safetensors")]
    told = done("adapters", *folders, "--mode", "ties", "-p", "density=0.2", "-w", "1,2", *where).out
    assert "base.safetensors + ties of 1.00 vqa + 2.00 caption" in told
    recorded = json.loads((tmp_path / "whole.safetensors.recipe.json").read_text())
    assert recorded["policy"]["mode"] == "ties"
    assert recorded["policy"]["parameters"] == {"density": 0.2}
    refused = command("adapters", *folders, "--mode", "factors", "-p", "density=1", "-o", str(tmp_path / "no"))
    assert refused.code == 2
