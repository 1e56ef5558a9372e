"""A UnIVAL model in another order of units computes the same, and finds back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from typer.testing import CliRunner, Result

import merge
from merge.tools.align import apply_permutation, random_permutation, weight_matching
from tests.unival_core.golden import filled
from unival_core.checkpoint import load_model, save_model
from unival_core.commands import app as program
from unival_core.config import CONFIGS, UnivalConfig, replace
from unival_core.model import Inputs, UnivalModel
from unival_core.permutations import permutations

POCKET = CONFIGS["pocket"]
assert POCKET.video is not None
# Two grouped convolutions, an ImageNet head, and a first stage that keeps its width.
GROUPED = replace(
    POCKET,
    video=replace(POCKET.video, groups=4),
    image=replace(POCKET.image, classes=3, planes=(16, 64)),
    encoder_layers=1,
    decoder_layers=3,
)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def words(seed: int, rows: int) -> Tensor:
    return torch.randint(4, POCKET.vocabulary, (rows, 6), generator=torch.Generator().manual_seed(seed))


INPUTS = {
    "text": Inputs(words(1, 2)),
    "image": Inputs(words(1, 2), images=noise(2, 2, 3, 48, 32)),
    "video": Inputs(words(1, 2), videos=noise(3, 2, 3, 4, 48, 32)),
    "audio": Inputs(words(1, 2), audios=0.1 * noise(4, 2, 16_000)),
}


def permuted(model: UnivalModel, seed: int) -> UnivalModel:
    spec = permutations(model.config, model.state_dict())
    copy = UnivalModel(model.config).eval()
    copy.load_state_dict(apply_permutation(spec, random_permutation(spec, seed), model.state_dict()))
    return copy


@torch.no_grad()
@pytest.mark.parametrize("config", [POCKET, GROUPED], ids=["pocket", "grouped"])
def test_a_permuted_copy_has_the_same_logits_and_finds_back(config: UnivalConfig) -> None:
    model = filled(config)
    other = permuted(model, 1)
    codes = torch.tensor([True, False])  # one target is an image
    for inputs in INPUTS.values():
        expected = model(inputs, words(5, 2), codes)
        assert float(expected.std()) > 0.1
        assert_close(other(inputs, words(5, 2), codes), expected, rtol=1e-4, atol=2e-5)
    spec = permutations(config, model.state_dict())
    found = weight_matching(spec, model.state_dict(), other.state_dict())
    aligned = apply_permutation(spec, found, other.state_dict())
    assert merge.digest(aligned) == merge.digest(model.state_dict())


def test_every_weight_with_units_takes_part(pocket: UnivalModel) -> None:
    spec = permutations(pocket.config, pocket.state_dict())
    assert {name for name in pocket.state_dict() if name not in spec.axes} == {
        name for name in pocket.state_dict() if name.endswith("num_batches_tracked")
    }
    still = [name for name, axes in spec.axes.items() if not any(axes)]
    assert still == [f"encoder.embed_audios.bn0.{key}" for key in ("weight", "bias", "running_mean", "running_var")]
    moved = permuted(pocket, 1).state_dict()
    assert [n for n in spec.axes if torch.equal(moved[n], pocket.state_dict()[n])] == still
    assert spec.sizes["width"] == 96
    assert spec.sizes["encoder.heads"] == 4
    assert spec.sizes["encoder.layers.0.self_attn.values"] == 24
    assert {group: outer for group, outer in spec.outer.items() if "pos" in group} == {
        "encoder.pos.keys": "encoder.heads",
        "decoder.self_pos.keys": "decoder.heads",
        "decoder.cross_pos.keys": "decoder.cross_heads",
    }


def test_models_of_one_ancestor_are_aligned_already(pocket: UnivalModel) -> None:
    state = pocket.state_dict()
    tuned = {
        name: value + 0.1 * value.std() * noise(7, *value.shape) if value.dim() > 1 else value
        for name, value in state.items()
    }
    spec = permutations(pocket.config, state)
    found = weight_matching(spec, state, tuned)
    assert all(torch.equal(order, torch.arange(order.shape[-1]).expand_as(order)) for order in found.values())


# -- the command -------------------------------------------------------------------------------------------------------


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(program, ["align", *map(str, arguments)])


def test_the_command_puts_a_file_back(pocket: UnivalModel, tmp_path: Path) -> None:
    small = filled(replace(POCKET, video=None, audio=None, encoder_layers=1, decoder_layers=1))
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_model(small, first)
    save_model(permuted(small, 2), second, metadata={"note": "kept"})
    output = tmp_path / "b_aligned.safetensors"
    done = run(first, second, "-o", output)
    assert done.exit_code == 0, done.output
    assert " units of " in done.stdout
    assert done.stdout.rstrip().endswith(" now")
    assert "1.0000 now" in done.stdout
    assert merge.digest(merge.open_checkpoint(output)) == merge.digest(merge.open_checkpoint(first))
    assert merge.open_checkpoint(output).metadata["note"] == "kept"
    assert load_model(output).config == small.config
    again = run(first, second, "-o", output)
    assert (again.exit_code, again.stderr) == (2, f"error: {output}: exists; choose another name or pass --overwrite\n")


def test_what_cannot_be_aligned_is_told(pocket: UnivalModel, tmp_path: Path) -> None:
    small = replace(POCKET, video=None, audio=None, encoder_layers=1, decoder_layers=1)
    save_model(filled(small), tmp_path / "a.safetensors")
    save_model(filled(replace(small, ffn=64)), tmp_path / "b.safetensors")
    merge.save_checkpoint({"weight": torch.ones(2)}, tmp_path / "c.safetensors")
    for other, message in (("b", " differ in 10 tensors (encoder.layers.0.fc1.weight"), ("c", "no UnIVAL checkpoint")):
        done = run(tmp_path / "a.safetensors", tmp_path / f"{other}.safetensors", "-o", tmp_path / "out.safetensors")
        assert done.exit_code == 2
        assert message in done.stderr
        assert not (tmp_path / "out.safetensors").exists()


def test_the_command_aligns_other_models_by_groups_given_or_derived(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    layers = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Linear(8, 3)).state_dict()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    moved = {**layers, "0.weight": layers["0.weight"][order], "0.bias": layers["0.bias"][order]}
    moved["1.weight"] = layers["1.weight"][:, order]
    for name, state in (("a", layers), ("b", moved)):
        merge.save_checkpoint(state, tmp_path / f"{name}.pt")
    groups = tmp_path / "groups.json"
    groups.write_text('{"hidden": {"0.weight": 0, "0.bias": 0, "1.weight": 1}}')
    for words in ((), ("--groups", groups)):
        done = run(tmp_path / "a.pt", tmp_path / "b.pt", *words, "-o", tmp_path / "out.pt", "--overwrite")
        assert done.exit_code == 0, done.output
        assert "1.0000 now" in done.stdout
        back = merge.load_checkpoint(tmp_path / "out.pt")
        assert all(torch.equal(back[name], layers[name]) for name in layers)
