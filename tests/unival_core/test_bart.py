"""BART's weights as the start of pretraining: rows by index, projections apart, the rest of a new model."""

from pathlib import Path

import pytest
import torch

from unival_core.bart import with_rows
from unival_core.checkpoint import config_of, load_model
from unival_core.config import CONFIGS, replace
from unival_core.errors import UnivalError
from unival_core.model import UnivalModel

CONFIG = replace(CONFIGS["pocket"], encoder_layers=1, decoder_layers=1, video=None, audio=None)
ROWS = 300  # of 424, up to the last but 84 text pieces


def bart(path: Path) -> Path:
    """A file of one layer: fused projections in the encoder, numbered norms in the decoder, a head."""
    state = UnivalModel(CONFIG).state_dict()
    gone = (
        "c_attn",
        "attn_ln",
        "ffn_layernorm",
        "rel_pos",
        "pos_",
        "image",
        "type_",
        "patch_",
        "code_",
        "cross_attn_ln",
    )
    kept = {name: tensor for name, tensor in state.items() if not any(word in name for word in gone)}
    kept = {
        name: tensor
        for name, tensor in kept.items()
        if name.partition(".")[2] not in ("layer_norm.weight", "layer_norm.bias")
    }
    kept = {name: torch.rand_like(tensor) for name, tensor in kept.items() if "embed_tokens" not in name}
    kept.pop("decoder.output_projection.weight")
    for stack in ("encoder", "decoder"):
        kept[f"{stack}.embed_tokens.weight"] = torch.arange(ROWS * 96.0).reshape(ROWS, 96)
        kept[f"{stack}.version"] = torch.tensor([3.0])
    place = "encoder.layers.0.self_attn"
    for kind in ("weight", "bias"):
        kept[f"{place}.in_proj_{kind}"] = torch.cat([kept.pop(f"{place}.{letter}_proj.{kind}") for letter in "qkv"])
        names = ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm")
        for number, name in enumerate(names):
            kept[f"decoder.layers.0.layer_norms.{number}.{kind}"] = kept.pop(f"decoder.layers.0.{name}.{kind}")
    kept["classification_heads.mnli.dense.weight"] = torch.ones(2, 2)
    torch.save({"args": None, "model": kept}, path)
    return path


def test_weights_are_placed_by_name_and_rows_by_index(tmp_path: Path) -> None:
    path = bart(tmp_path / "model.pt")
    file = torch.load(path)["model"]
    torch.manual_seed(0)
    model = load_model(path, CONFIG)
    own = model.state_dict()
    rows = own["encoder.embed_tokens.weight"]
    assert torch.equal(rows[:ROWS], file["encoder.embed_tokens.weight"])
    assert float(rows[ROWS:].std()) == pytest.approx(96**-0.5, rel=0.05)
    assert model.decoder.output_projection.weight is model.encoder.embed_tokens.weight
    assert torch.equal(own["encoder.embed_positions.weight"], file["encoder.embed_positions.weight"])
    fused = file["encoder.layers.0.self_attn.in_proj_weight"]
    parts = [own[f"encoder.layers.0.self_attn.{letter}_proj.weight"] for letter in "qkv"]
    assert torch.equal(torch.cat(parts), fused)
    assert torch.equal(
        own["decoder.layers.0.encoder_attn_layer_norm.bias"], file["decoder.layers.0.layer_norms.1.bias"]
    )
    assert torch.equal(own["encoder.layers.0.self_attn.c_attn"], torch.ones(4))  # a new model's
    assert not model.training


def test_what_has_no_place_is_told(tmp_path: Path) -> None:
    path = bart(tmp_path / "model.pt")
    with pytest.raises(UnivalError, match=r"has no place for decoder.embed_positions.weight \(66, 96\), .*: give"):
        load_model(path, replace(CONFIG, max_positions=70))
    with pytest.raises(UnivalError, match=r"has no place for decoder.embed_tokens.weight \(300, 96\)"):
        load_model(path, replace(CONFIG, text_ids=100))


def test_a_start_has_the_media_of_pretraining(tmp_path: Path) -> None:
    from merge import open_checkpoint

    config = config_of(open_checkpoint(bart(tmp_path / "model.pt")))
    assert config == replace(CONFIGS["base"], audio=None)
    assert torch.equal(with_rows(torch.ones(3, 2), 2), torch.ones(3, 2))
