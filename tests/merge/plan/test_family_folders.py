"""Emu2, Unified-IO 2 and 4M: folders of safetensors in shards, of several dtypes, with ties told in metadata."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

import merge
from merge import MergeError, Options, Policy, load_checkpoint, open_checkpoint, run
from tests.merge.handmade import assert_equal, random_tensor
from tests.merge.made import assert_same, ordered_as
from tests.merge.shell import command, done
from tests.merge.ways import QUICK, merged_every_way, recipe_of

EMBEDDING, HEAD = "lm.model.embed_tokens.weight", "lm.lm_head.weight"


def tensor(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return random_tensor(shape, dtype, seed)


# -- Emu2 ------------------------------------------------------------------------------------------------------------


def emu(folder: Path, seed: int, rows: int = 6) -> Path:
    """A folder of two shards under an index, with the files that a model is loaded with."""
    folder.mkdir()
    shards = (
        {EMBEDDING: tensor(seed, rows, 4, dtype=torch.bfloat16), "visual.patch.weight": tensor(seed + 1, 3, 2)},
        {HEAD: tensor(seed + 2, rows, 4, dtype=torch.bfloat16), "project_down.bias": tensor(seed + 3, 4)},
    )
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file(shard, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"vocab_size": rows}))
    (folder / "modeling_emu.py").write_text("# code\n")
    return folder


def test_extra_rows_of_a_vocabulary_come_from_the_one_that_has_them(tmp_path: Path) -> None:
    pair = {"chat": emu(tmp_path / "chat", 0, 8), "gen": emu(tmp_path / "gen", 10)}
    recipe = recipe_of("interpolate", pair, {"ratio": 0.25}, Policy(vocab_rows="keep-first"))
    made = merged_every_way(recipe, tmp_path / "out")
    first, second = (load_checkpoint(path) for path in pair.values())
    for name in (EMBEDDING, HEAD):
        common = merge.interpolate({"w": first[name][:6]}, {"w": second[name]}, 0.25)["w"]
        assert torch.equal(made[name][:6], common)
        assert torch.equal(made[name][6:], first[name][6:])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "modeling_emu.py",
    ]
    turned = run(recipe_of("interpolate", dict(reversed(pair.items())), {"ratio": 0.25}, recipe.policy), tmp_path / "t")
    assert torch.equal(load_checkpoint(turned)[HEAD][6:], first[HEAD][6:])


def test_shards_are_merged_shard_by_shard(tmp_path: Path) -> None:
    pair = {"a": emu(tmp_path / "a", 0), "b": emu(tmp_path / "b", 10)}
    out = run(recipe_of("average", pair, {}, Policy()), tmp_path / "out", Options(sync=False, shard_size=80))
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == {EMBEDDING, HEAD, "visual.patch.weight", "project_down.bias"}
    assert len(open_checkpoint(out).files) > 1
    wanted = merge.average([load_checkpoint(path) for path in pair.values()])
    assert_same(ordered_as(load_checkpoint(out), wanted), wanted)


def test_rows_that_a_base_has_stand_for_an_expert(tmp_path: Path) -> None:
    three = {"base": emu(tmp_path / "base", 20, 8), "a": emu(tmp_path / "a", 0, 8), "b": emu(tmp_path / "b", 10)}
    recipe = recipe_of("task-arithmetic", three, {"scale": 0.5}, Policy(vocab_rows="zero-delta"))
    made = merged_every_way(recipe, tmp_path / "out")
    states = {name: load_checkpoint(path) for name, path in three.items()}
    for name in (EMBEDDING, HEAD):
        states["b"][name] = torch.cat([states["b"][name], states["base"][name][6:]])
    wanted = merge.task_arithmetic(states["base"], [states["a"], states["b"]], 0.5)
    assert_same(ordered_as(made, wanted), wanted)


def test_rows_are_only_matched_when_asked_and_only_in_vocabularies(tmp_path: Path) -> None:
    pair = [emu(tmp_path / "a", 0, 8), emu(tmp_path / "b", 10)]
    outcome = command("average", *pair, "-o", tmp_path / "out")
    assert f"{EMBEDDING} has shape [8, 4] in a and [6, 4] in b: pass --keep {EMBEDDING} or --drop" in outcome.err
    assert "or merge row by row with --vocab-rows keep-first" in outcome.err
    shown = done("average", *pair, "--vocab-rows", "keep-first", "-o", tmp_path / "out", "--dry-run").out
    assert f"{EMBEDDING}, {HEAD}: by row\n" in shown
    states = [{"classifier.weight": tensor(0, rows, 2)} for rows in (3, 4)]
    with pytest.raises(MergeError, match=r"classifier.weight has shape \[3, 2\] in 0 and \[4, 2\] in 1"):
        merge.average(states, policy=Policy(vocab_rows="keep-first"))
    with pytest.raises(MergeError, match="vocab_rows='zero-delta' says what lacks counts as the base's"):
        merge.average(states, policy=Policy(vocab_rows="zero-delta"))


def test_vocabularies_of_one_model_have_one_length() -> None:
    first = {"embed_tokens.weight": tensor(0, 4, 2), "lm_head.weight": tensor(1, 4, 2)}
    second = {"embed_tokens.weight": tensor(2, 6, 2), "lm_head.weight": tensor(3, 5, 2)}
    with pytest.raises(
        MergeError, match=r"rows differ otherwise: embed_tokens.weight has 4, 6, lm_head.weight has 4, 5;"
    ):
        merge.average([first, second], policy=Policy(vocab_rows="keep-first"))


# -- Unified-IO 2 ----------------------------------------------------------------------------------------------------


def unified(folder: Path, seed: int, audio: bool = True) -> Path:
    """A folder whose trunk is bfloat16 and whose image parts are float32; audio can be left out."""
    folder.mkdir()
    held = {
        "t5_token_embedder.embedding.weight": tensor(seed, 5, 3, dtype=torch.bfloat16),
        "decoder.layers_0.mlp.wi_0.weight": tensor(seed + 1, 3, 3, dtype=torch.bfloat16),
        "image_vqgan.encoder.conv_in.weight": tensor(seed + 2, 2, 3),
        "position.ids": torch.arange(4),
    }
    if audio:
        held["audio_vqgan.quantize.embedding.weight"] = tensor(seed + 3, 2, 3)
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"use_audio": audio}))
    return folder


def test_dtypes_are_by_tensor_and_dropped_modalities_are_a_choice(tmp_path: Path) -> None:
    pair = {"a": unified(tmp_path / "a", 0), "b": unified(tmp_path / "b", 10, audio=False)}
    with pytest.raises(MergeError, match="b lacks 1 tensor: audio_vqgan"):
        run(recipe_of("average", pair, {}, Policy()), tmp_path / "no", QUICK)
    kept = Policy(missing="keep-first", accept="config-differs")  # use_audio: the first's is right for what is kept
    made = merged_every_way(recipe_of("average", pair, {}, kept), tmp_path / "out")
    first, second = (load_checkpoint(path) for path in pair.values())
    assert {name: value.dtype for name, value in made.items()} == {name: value.dtype for name, value in first.items()}
    trunk = "decoder.layers_0.mlp.wi_0.weight"
    assert torch.equal(made[trunk], torch.lerp(first[trunk].float(), second[trunk].float(), 0.5).bfloat16())
    audio = "audio_vqgan.quantize.embedding.weight"
    assert torch.equal(made[audio], first[audio])
    done("average", *pair.values(), "--drop", "audio_*", "--accept", "config-differs", "-o", tmp_path / "silent")
    assert set(load_checkpoint(tmp_path / "silent")) == set(second)


def test_a_folder_merged_with_itself_comes_back(tmp_path: Path) -> None:
    folder = unified(tmp_path / "a", 0)
    out = run(recipe_of("average", {"x": folder, "y": folder}, {}, Policy()), tmp_path / "out", QUICK)
    assert_same(ordered_as(load_file(out / "model.safetensors"), load_checkpoint(folder)), load_checkpoint(folder))
    assert (out / "config.json").read_bytes() == (folder / "config.json").read_bytes()


# -- 4M --------------------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """A model with an output tied to its input."""

    def __init__(self, seed: int, tied: bool = True):
        super().__init__()
        self.embed, self.body = nn.Embedding(5, 3), nn.Linear(3, 3)
        self.out = nn.Linear(3, 5, bias=False)
        for index, value in enumerate(self.parameters()):
            value.data = tensor(seed + index, *value.shape)
        if tied:
            self.out.weight = self.embed.weight


def hub(path: Path, seed: int) -> Path:
    """A file as the hub's mixin writes it: configuration in the metadata, the tied name left out and told there."""
    config = {"config": json.dumps({"dim": 3, "domains": ["rgb", "caption"]}), "model": "fm"}
    save_model(Tied(seed), str(path), config)
    return path


def metadata(path: Path) -> Mapping[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_a_name_that_is_tied_away_is_present(tmp_path: Path) -> None:
    pair = {"a": hub(tmp_path / "a.safetensors", 0), "b": hub(tmp_path / "b.safetensors", 10)}
    assert len(load_file(pair["a"])) == 3
    made = merged_every_way(recipe_of("interpolate", pair, {"ratio": 0.25}, Policy()), tmp_path / "out.safetensors")
    assert set(made) == {"embed.weight", "body.weight", "body.bias", "out.weight"}
    assert made["embed.weight"].data_ptr() == made["out.weight"].data_ptr()
    assert metadata(tmp_path / "out.safetensors") == metadata(pair["a"])
    assert set(load_file(tmp_path / "out.safetensors")) == set(load_file(pair["a"]))
    model = Tied(99)
    load_model(model, str(tmp_path / "out.safetensors"))  # strict: the project's own loader
    a, b = Tied(0), Tied(10)
    assert torch.equal(model.out.weight, torch.lerp(a.out.weight, b.out.weight, 0.25))
    done("inspect", tmp_path / "out.safetensors", "--verify")


@pytest.mark.parametrize("policy", [Policy(), Policy(missing="keep-first")])
def test_the_other_input_may_hold_both_names(policy: Policy, tmp_path: Path) -> None:
    other = {name: value.clone() for name, value in Tied(10).state_dict().items()}
    save_file(other, tmp_path / "b.safetensors")
    pair = {"b": tmp_path / "b.safetensors", "a": hub(tmp_path / "a.safetensors", 0)}
    made = merged_every_way(recipe_of("average", pair, {}, policy), tmp_path / "out.safetensors")
    wanted = torch.lerp(other["embed.weight"], Tied(0).embed.weight.detach(), 0.5)
    assert torch.equal(made["embed.weight"], wanted)
    assert torch.equal(made["out.weight"], wanted)
    assert len(load_file(tmp_path / "out.safetensors")) == 4  # the first has both: so does the result
    untied = {name: value.clone() for name, value in Tied(20, tied=False).state_dict().items()}
    save_file(untied, tmp_path / "c.safetensors")
    pair = {"a": pair["a"], "c": tmp_path / "c.safetensors"}
    made = merged_every_way(recipe_of("average", pair, {}, policy), tmp_path / "apart.safetensors")
    assert torch.equal(made["out.weight"], torch.lerp(Tied(0).out.weight.detach(), untied["out.weight"], 0.5))
    assert not torch.equal(made["out.weight"], made["embed.weight"])


def test_ties_told_in_an_index_are_known_and_told_again(tmp_path: Path) -> None:
    pair = {}
    for seed, name in enumerate("ab"):
        folder = tmp_path / name
        folder.mkdir()
        held = {key: value for key, value in Tied(seed).state_dict().items() if key != "out.weight"}
        for number, key in enumerate(held, 1):
            save_file({key: held[key]}, folder / f"model-{number:05}-of-00003.safetensors", {"format": "pt"})
        places = {key: f"model-{number:05}-of-00003.safetensors" for number, key in enumerate(held, 1)}
        index = {"metadata": {"total_size": 1, "out.weight": "embed.weight"}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        pair[name] = folder
    out = run(recipe_of("average", pair, {}, Policy()), tmp_path / "out", Options(sync=False, shard_size=40))
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["out.weight"] == "embed.weight"
    assert "out.weight" not in index["weight_map"]
    made = load_checkpoint(out)
    assert made["out.weight"].data_ptr() == made["embed.weight"].data_ptr()


def test_a_namespace_survives(tmp_path: Path) -> None:
    args = argparse.Namespace(model="fm_base", domains=["rgb"], lr=1e-4, nested=argparse.Namespace(a=1))
    for seed, name in enumerate("ab"):
        torch.save({"model": {"w": tensor(seed, 2)}, "args": args, "epoch": 3}, tmp_path / f"{name}.pth")
    pair = {name: tmp_path / f"{name}.pth" for name in "ab"}
    out = run(recipe_of("average", pair, {}, Policy()), tmp_path / "out.pth", QUICK)
    after = torch.load(out, weights_only=False)
    assert_equal(after["args"], args, "args")
    assert list(after) == ["model", "args", "epoch"]


def tokenizer(seed: int, sums: bool = True) -> dict[str, Tensor]:
    """A vector-quantised tokenizer: a codebook with the moving sums that training left."""
    book = {
        "quantize._codebook.initted": torch.tensor([True]),
        "quantize._codebook.cluster_size": tensor(seed, 4).abs(),
        "quantize._codebook.embed_avg": tensor(seed + 1, 4, 2),
        "quantize._codebook.embed": tensor(seed + 2, 4, 2),
    }
    held = {name: value for name, value in book.items() if sums or name.endswith("embed")}
    return {**held, "encoder.embed": tensor(seed + 3, 2), "encoder.w": tensor(seed + 4, 2)}


def test_codebooks_are_copied(tmp_path: Path) -> None:
    pair = {}
    for seed, name in ((0, "a"), (10, "b")):
        save_file(tokenizer(seed), tmp_path / f"{name}.safetensors", {"config": '{"codes": 4}'})
        pair[name] = tmp_path / f"{name}.safetensors"
    made = merged_every_way(recipe_of("interpolate", pair, {"ratio": 0.25}, Policy()), tmp_path / "out.safetensors")
    for name, value in made.items():
        first, second = tokenizer(0)[name], tokenizer(10)[name]
        assert torch.equal(value, first if "_codebook" in name else torch.lerp(first, second, 0.25)), name
    assert metadata(tmp_path / "out.safetensors") == {"config": '{"codes": 4}'}
    shown = done("average", *pair.values(), "-o", tmp_path / "x.safetensors", "--dry-run").out
    assert ", ...: codebook\n" in shown
    other = merge.interpolate(tokenizer(0), tokenizer(10), 0.25, policy=Policy(pick=("quantize.*=second",)))
    assert torch.equal(other["quantize._codebook.embed"], tokenizer(10)["quantize._codebook.embed"])


def test_an_embed_without_moving_sums_is_a_weight() -> None:
    name = "quantize._codebook.embed"
    first, second = tokenizer(0, sums=False), tokenizer(10, sums=False)
    with pytest.warns(merge.MergeWarning, match="codebooks differ"):
        merged = merge.average([first, second])
    assert torch.equal(merged[name], torch.lerp(first[name], second[name], 0.5))


def test_a_live_model_follows_a_hub_file(tmp_path: Path) -> None:
    """The model has both names, the files one."""
    pair = [hub(tmp_path / f"{seed}.safetensors", seed) for seed in (0, 10)]
    model = Tied(50)
    path = merge.LinearPath(model, *pair)
    path.set(0.25)
    assert torch.equal(model.out.weight, torch.lerp(Tied(0).out.weight, Tied(10).out.weight, 0.25))
    assert model.out.weight is model.embed.weight
