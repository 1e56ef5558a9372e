"""Files to models and back: names, bits, configs, repairs, refusals."""

import hashlib
import json
import os
import re
import subprocess
import sys
import warnings
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from merge import LinearPath, MergeError, open_checkpoint, save_checkpoint
from tests.unival_core.golden import ROOT, SHARED, fill, recorded
from tests.unival_core.made_files import SMALL, published, training_file
from unival_core.checkpoint import bare_model, infer_config, load_model, save_model
from unival_core.computed import COMPUTED, TOKENS, computed_tensors, fourier_kernels, is_computed
from unival_core.config import CONFIGS, replace
from unival_core.errors import UnivalError
from unival_core.model import Inputs, UnivalModel


@pytest.fixture(scope="module")
def small() -> UnivalModel:
    model = UnivalModel(SMALL)
    fill(model)
    return model.eval()


def same(one: UnivalModel, other: UnivalModel) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


# ---- our own files


def test_own_file_holds_config_and_bits(pocket: UnivalModel, tmp_path: Path) -> None:
    path = save_model(pocket, tmp_path / "a.safetensors", metadata={"note": "kept"})
    loaded = load_model(path)
    assert loaded.config == pocket.config
    assert not loaded.training
    assert same(loaded, pocket)
    assert open_checkpoint(path).metadata["note"] == "kept"


def test_loaded_model_shares_one_token_matrix_and_outlives_the_file(pocket: UnivalModel, tmp_path: Path) -> None:
    path = save_model(pocket, tmp_path / "a.safetensors")
    loaded = load_model(path)
    path.write_bytes(b"")
    assert loaded.decoder.output_projection.weight is loaded.encoder.embed_tokens.weight
    assert loaded.decoder.embed_tokens is loaded.encoder.embed_tokens
    assert all(p.requires_grad for p in loaded.parameters())
    with torch.no_grad():
        assert_close(*(m(Inputs(torch.tensor([[0, 9, 2]])), torch.tensor([[0, 5]])) for m in (loaded, pocket)))


def test_dtype(pocket: UnivalModel, tmp_path: Path) -> None:
    path = save_model(pocket, tmp_path / "a.safetensors")
    half = load_model(path, dtype=torch.bfloat16)
    kinds = {value.dtype for value in half.state_dict().values()}
    assert kinds == {torch.bfloat16, torch.int64}  # batch counters stay counters
    inputs = Inputs(torch.tensor([[0, 9, 2]]), images=torch.ones(1, 3, 48, 48))
    with torch.no_grad():
        rounded, exact = (m(inputs, torch.tensor([[0, 5]])) for m in (half, pocket))
    assert_close(rounded.float(), exact, atol=0.1, rtol=0.1)


def test_a_plain_script_starts_lightly(pocket: UnivalModel, tmp_path: Path) -> None:
    """Loading and generating imports neither what only plots and tables need nor torch's compiler."""
    save_model(pocket, tmp_path / "a.safetensors")
    script = """
import sys, torch
from unival_core.checkpoint import load_model
from unival_core.generation import generate
from unival_core.model import Inputs
inputs = Inputs(torch.tensor([[0, 9, 2]]), images=torch.ones(1, 3, 48, 48))
assert generate(load_model("a.safetensors"), inputs)[0][0].tokens
print(*{"pandas", "matplotlib", "torch._dynamo"} & set(sys.modules))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_other_suffixes_need_a_layout(pocket: UnivalModel, tmp_path: Path) -> None:
    with pytest.raises(UnivalError, match=r"only \.safetensors keeps the config; for another layout give `like`"):
        save_model(pocket, tmp_path / "a.pt")


def test_nothing_is_overwritten_unasked(pocket: UnivalModel, tmp_path: Path) -> None:
    path = save_model(pocket, tmp_path / "a.safetensors")
    with pytest.raises(MergeError):
        save_model(pocket, path)
    save_model(pocket, path, overwrite=True)


# ---- published files


def test_published_file_round_trip(small: UnivalModel, tmp_path: Path) -> None:
    state = published(small)
    path = training_file(tmp_path / "old.pt", state)
    model = load_model(path)
    assert model.config == SMALL
    assert model.encoder.embed_tokens.weight.dtype == torch.float32
    again = torch.load(save_model(model, tmp_path / "new.pt", like=path), weights_only=False)
    assert again["cfg"]["model"].arch == "unival_base"
    assert again["optimizer_history"] == [{"num_updates": 7}]
    assert list(again["model"]) == list(state)
    for name, value in state.items():
        assert again["model"][name].dtype == value.dtype
        assert torch.equal(again["model"][name], value), name
    tied = [again["model"][name] for name in (TOKENS, "decoder.output_projection.weight")]
    assert tied[0].data_ptr() == tied[1].data_ptr()


def test_sections(small: UnivalModel, tmp_path: Path) -> None:
    averaged = {n: v + 1 if n == TOKENS else v for n, v in published(small).items() if not n.endswith("version")}
    for name in ("decoder.embed_tokens.weight", "decoder.output_projection.weight"):
        averaged[name] = averaged[TOKENS]
    path = training_file(tmp_path / "a.pt", published(small), extra_state={"ema": averaged})
    with pytest.raises(MergeError, match="several sections"):
        load_model(path)
    plain, mean = (load_model(path, section=name).encoder.embed_tokens.weight for name in ("model", "extra_state.ema"))
    assert float((mean - plain).mean().detach()) == pytest.approx(1, abs=1e-3)


def test_folder(small: UnivalModel, tmp_path: Path) -> None:
    training_file(tmp_path / "checkpoint_best.pt", published(small))
    assert load_model(tmp_path).config == SMALL


@pytest.mark.parametrize("encoders", [("image",), ("image", "video"), ("image", "audio")])
def test_config_tells_which_encoders_a_file_carries(encoders: tuple[str, ...]) -> None:
    absent = {name: None for name in ("video", "audio") if name not in encoders}
    config = replace(SMALL, **absent, code_image_size=128)
    state = bare_model(config).state_dict()
    state["decoder.image_position_idx"] = computed_tensors(config)["decoder.image_position_idx"]()
    assert infer_config(state) == config


@pytest.mark.parametrize(("name", "absent"), [("image", ["video", "audio"]), ("video", ["audio"]), ("audio", [])])
def test_config_of_published_names_and_shapes(name: str, absent: list[str]) -> None:
    path = SHARED / f"manifest_base_{name}.json"
    if not path.exists():
        pytest.skip(f"needs {path}")
    listed = json.loads(path.read_text())["state_dict"]
    state = {key: torch.empty(shape, device="meta") for key, (shape, _) in listed.items()}
    assert infer_config(state) == replace(CONFIGS["base"], **dict.fromkeys(absent))


def test_computed_tensors_equal_the_recorded() -> None:
    tensors, _ = recorded("base_audio")
    audio = CONFIGS["base"].audio
    assert audio is not None
    for kernel, part in zip(fourier_kernels(audio), ("real", "imag"), strict=True):
        assert_close(kernel[[0, 1, 100, 512], 0], tensors[f"stft_conv_{part}_rows_0_1_100_512"], atol=1e-7, rtol=0)
    digests = json.loads((SHARED / "manifest_base_audio.json").read_text())["integer_buffer_sha256"]
    found = {
        name: hashlib.sha256(compute().numpy().tobytes()).hexdigest()
        for pattern, compute in computed_tensors(CONFIGS["base"]).items()
        for name in digests
        if fnmatchcase(name, pattern)
    }
    assert found == digests


def test_published_file_through_a_live_path(small: UnivalModel, tmp_path: Path) -> None:
    """A merge of published files goes into a model once the computed tensors are left out."""
    path = training_file(tmp_path / "a.pt", published(small))
    weights = {name: value for name, value in open_checkpoint(path).items() if not is_computed(name)}
    other = {name: value * 0 for name, value in weights.items()}
    model = load_model(path)
    LinearPath(model, weights, other).set(1.0)
    assert float(model.encoder.embed_tokens.weight.detach().abs().sum()) == 0


@pytest.mark.slow
def test_full_size_published_file(base: UnivalModel, tmp_path: Path) -> None:
    """Loads, generates, and is written back with the same bits."""
    from unival_core.generation import GenerationOptions, generate

    state = published(base)
    path = training_file(tmp_path / "old.pt", state)
    model = load_model(path)
    assert model.config == base.config
    inputs = Inputs(torch.tensor([[0, 100, 200, 2]]), images=torch.ones(1, 3, 64, 64))
    assert generate(model, inputs, GenerationOptions(beam=2, max_len_b=4))
    again = open_checkpoint(save_model(model, tmp_path / "new.pt", like=path))
    listed = json.loads((SHARED / "manifest_base_audio.json").read_text())["state_dict"]
    assert {name: list(value.shape) for name, value in again.items()} == {n: s for n, (s, _) in listed.items()}
    assert all(torch.equal(again[name], value) for name, value in state.items())


# ---- refusals and repairs


def rewritten(model: UnivalModel, path: Path, changes: dict[str, Tensor | None]) -> Path:
    """The model's own file with some tensors changed, added or (None) left out."""
    state = {**model.state_dict(), **changes}
    kept = {name: value for name, value in state.items() if value is not None}
    return save_checkpoint(kept, path, metadata={"unival_config": model.config.to_json()})


def test_refusal_lists_every_difference(pocket: UnivalModel, tmp_path: Path) -> None:
    changes = {
        "encoder.layer_norm.weight": None,
        "decoder.layer_norm.bias": None,
        "classification_heads.out.weight": torch.ones(2),
        "encoder.pos_ln.weight": torch.ones(95),
    }
    path = rewritten(pocket, tmp_path / "a.safetensors", changes)
    with pytest.raises(UnivalError) as caught:
        load_model(path)
    text = str(caught.value)
    assert "\n" not in text
    assert "missing: decoder.layer_norm.bias, encoder.layer_norm.weight; unexpected: classification_heads" in text
    assert "encoder.pos_ln.weight (95,) instead of (96,)" in text


def test_lenient_loading_tells_what_it_did(pocket: UnivalModel, tmp_path: Path) -> None:
    changes = {"encoder.layer_norm.weight": None, "classification_heads.out.weight": torch.ones(2)}
    path = rewritten(pocket, tmp_path / "a.safetensors", changes)
    with pytest.warns(UserWarning, match=re.escape(str(path))) as told:
        model = load_model(path, strict=False)
    assert [str(one.message).removeprefix(f"{path}: ") for one in told] == [
        "started from scratch: encoder.layer_norm.weight",
        "left out: classification_heads.out.weight",
    ]
    assert torch.equal(model.encoder.layer_norm.weight, torch.ones(96))
    assert torch.equal(model.encoder.pos_ln.weight, pocket.encoder.pos_ln.weight)


def test_lenient_loading_of_a_fitting_file_is_silent(pocket: UnivalModel, tmp_path: Path) -> None:
    path = save_model(pocket, tmp_path / "a.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(load_model(path, strict=False), pocket)


def test_untied_matrices_are_refused(pocket: UnivalModel, tmp_path: Path) -> None:
    name = "decoder.output_projection.weight"
    path = rewritten(pocket, tmp_path / "a.safetensors", {name: pocket.state_dict()[name] + 1})
    with pytest.raises(UnivalError, match="one matrix for both"):
        load_model(path)


def test_images_may_have_another_size_than_in_pretraining(small: UnivalModel, tmp_path: Path) -> None:
    training_file(tmp_path / "a.pt", published(small))
    config = replace(SMALL, code_image_size=128)
    model = load_model(tmp_path / "a.pt", config)
    assert (model.config, model.decoder.config.code_side) == (config, 16)
    own = load_model(tmp_path / "a.pt").state_dict()
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())
    state = published(small)
    cells = state["decoder.image_position_idx"].flip(0)
    training_file(tmp_path / "b.pt", {**state, "decoder.image_position_idx": cells})
    for wanted in (SMALL, config):
        with pytest.raises(UnivalError, match=r"decoder\.image_position_idx, .*, is not what the config gives"):
            load_model(tmp_path / "b.pt", wanted)


def test_computed_tensors_are_checked(small: UnivalModel, tmp_path: Path) -> None:
    state = published(small)
    wrong = {**state, "encoder.token_rp_bucket": state["encoder.token_rp_bucket"].flip(0)}
    with pytest.raises(UnivalError, match=r"encoder.token_rp_bucket, \(1024, 1024\), is not what the config gives"):
        load_model(training_file(tmp_path / "a.pt", wrong))
    assert SMALL.audio is not None
    other = replace(SMALL, audio=replace(SMALL.audio, fmax=12_000.0))
    with pytest.raises(UnivalError, match=r"melW, \(513, 64\), .* pass the config"):
        load_model(training_file(tmp_path / "b.pt", state), other)
    assert load_model(training_file(tmp_path / "c.pt", {n: v for n, v in state.items() if not is_computed(n)}))


def test_foreign_files_are_refused(tmp_path: Path, pocket: UnivalModel) -> None:
    path = save_checkpoint({"weight": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(UnivalError, match=r"no UnIVAL checkpoint: .* encoder\.embed_tokens\.weight, only weight"):
        load_model(path)
    path = save_checkpoint(pocket.state_dict(), tmp_path / "b.safetensors")
    with pytest.raises(
        UnivalError, match=r"a vocabulary of 424 ids is not 50265 text_ids \+ 8192 codes \+ 1000 bins: give the config"
    ):
        load_model(path)
    assert same(load_model(path, pocket.config), pocket)


def test_larger_vocabulary_gets_fresh_rows(pocket: UnivalModel, tmp_path: Path) -> None:
    path = save_model(pocket, tmp_path / "a.safetensors")
    config = replace(pocket.config, bins=pocket.config.bins + 3)
    with pytest.raises(UnivalError, match=r"\(424, 96\) instead of \(427, 96\)"):
        load_model(path, config)
    with pytest.warns(UserWarning, match="appended 3 fresh rows to a vocabulary of 424"):
        model = load_model(path, config, strict=False)
    matrix = model.decoder.output_projection.weight
    assert matrix is model.encoder.embed_tokens.weight
    assert torch.equal(matrix[:424], pocket.encoder.embed_tokens.weight)
    assert float(matrix[424:].detach().std()) == pytest.approx(96**-0.5, rel=0.3)


def test_longer_texts_keep_known_positions(pocket: UnivalModel, tmp_path: Path) -> None:
    path = save_model(pocket, tmp_path / "a.safetensors")
    with pytest.warns(UserWarning, match=r"grew encoder.embed_positions.weight from 66 rows, .* to 82"):
        model = load_model(path, replace(pocket.config, max_positions=80), strict=False)
    assert torch.equal(model.encoder.embed_positions.weight[:66], pocket.encoder.embed_positions.weight)


@torch.no_grad()
def test_larger_grid_changes_nothing_on_known_cells(pocket: UnivalModel, tmp_path: Path) -> None:
    path = save_model(pocket, tmp_path / "a.safetensors")
    with pytest.warns(UserWarning, match="moved a grid of 12 x 12 positions into one of 15 x 15"):
        model = load_model(path, replace(pocket.config, image_bucket=15), strict=False)
    inputs = Inputs(torch.tensor([[0, 9, 2]]), images=torch.randn(1, 3, 48, 48))
    targets = torch.arange(20)[None]
    for codes in (None, torch.ones(1, dtype=torch.bool)):
        assert_close(model(inputs, targets, codes), pocket(inputs, targets, codes), atol=1e-5, rtol=1e-5)


def test_patterns_name_exactly_what_is_not_a_weight(small: UnivalModel) -> None:
    assert {name for name in published(small) if is_computed(name)} == published(
        small
    ).keys() - small.state_dict().keys()
    assert all(any(fnmatchcase(name, pattern) for name in published(small)) for pattern in COMPUTED)
