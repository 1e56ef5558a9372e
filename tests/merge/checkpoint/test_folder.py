"""Folders of several parts: pipelines, modules, checkpoints of a training; what lies beside the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import merge
from merge import MergeError, Policy, load_checkpoint, open_checkpoint, run
from tests.merge.handmade import random_tensor
from tests.merge.made import assert_same
from tests.merge.shell import command, done
from tests.merge.ways import QUICK, recipe_of


def tensors(seed: int, *names: str) -> dict[str, Tensor]:
    return {name: random_tensor((3, 2), torch.float32, seed + i) for i, name in enumerate(names)}


def write(folder: Path, files: Mapping[str, object]) -> Path:
    """Files by relative name: tensors as the suffix says, texts, data as JSON."""
    for name, held in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(held, str):
            path.write_text(held)
        elif path.suffix == ".json":
            path.write_text(json.dumps(held))
        elif path.suffix == ".safetensors":
            assert isinstance(held, dict)
            save_file(held, path, {"format": "pt"})
        else:
            torch.save(held, path)
    return folder


def pipeline(folder: Path, seed: int) -> Path:
    """A diffusers pipeline: a sharded unet, a vae of which there are variants, a text encoder as torch file."""
    shards = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    unet = [tensors(seed, "conv_in.weight"), tensors(seed + 1, "conv_out.weight")]
    weight_map = {name: file for file, held in zip(shards, unet, strict=True) for name in held}
    vae = tensors(seed + 2, "decoder.weight")
    return write(
        folder,
        {
            "model_index.json": {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet"]},
            "README.md": "# the first",
            "unet/config.json": {"sample_size": 8},
            **{f"unet/{file}": held for file, held in zip(shards, unet, strict=True)},
            "unet/diffusion_pytorch_model.safetensors.index.json": {
                "metadata": {"total_size": 1},
                "weight_map": weight_map,
            },
            "vae/config.json": {"latent": 4},
            "vae/diffusion_pytorch_model.safetensors": vae,
            "vae/diffusion_pytorch_model.fp16.safetensors": {name: value.half() for name, value in vae.items()},
            "vae/diffusion_pytorch_model.bin": vae,
            "text_encoder/pytorch_model.bin": tensors(seed + 3, "embed.weight"),
            "scheduler/scheduler_config.json": {"beta": 1},
            "tokenizer/vocab.json": {"a": 0},
            "whole.safetensors": tensors(seed + 9, "model.x"),
            "vae_alone.safetensors": vae,
        },
    )


def test_every_part_of_a_pipeline_is_merged_and_goes_back(tmp_path: Path) -> None:
    pair = [pipeline(tmp_path / name, seed) for name, seed in (("a", 0), ("b", 50))]
    out = tmp_path / "out"
    shown = done("interpolate", *pair, "--ratio", "0.25", "-o", out)
    assert (
        set(open_checkpoint(out))
        == set(open_checkpoint(pair[0]))
        == {
            "text_encoder/embed.weight",
            "unet/conv_in.weight",
            "unet/conv_out.weight",
            "vae/decoder.weight",
        }
    )
    first, second = (load_checkpoint(path) for path in pair)
    assert_same(load_checkpoint(out), merge.interpolate(first, second, 0.25))
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()) == [
        "README.md",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/pytorch_model.bin",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    assert torch.load(out / "text_encoder/pytorch_model.bin").keys() == {"embed.weight"}
    index = json.loads((out / "unet/diffusion_pytorch_model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 48}
    assert "diffusion_pytorch_model.fp16.safetensors" in shown.err
    assert "whole.safetensors" in shown.err
    done("inspect", out)
    done("run", tmp_path / "out.recipe.json", "-o", tmp_path / "again")
    assert_same(load_checkpoint(tmp_path / "again"), load_checkpoint(out))


def test_a_variant_alone_is_the_weights(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        held = {key: value.half() for key, value in tensors(seed, "w").items()}
        write(
            tmp_path / name,
            {
                "model_index.json": {},
                "unet/diffusion_pytorch_model.fp16.safetensors": held,
                "vae/diffusion_pytorch_model.fp16.safetensors": held,
            },
        )
    done("average", tmp_path / "a", tmp_path / "b", "--dtype", "float16", "-o", tmp_path / "out")
    assert load_file(tmp_path / "out/unet/diffusion_pytorch_model.fp16.safetensors")["w"].dtype == torch.float16


@pytest.mark.parametrize("root", ["", "0_Transformer/"])
def test_modules_of_sentence_transformers(root: str, tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        write(
            tmp_path / name,
            {
                "modules.json": [{"idx": 0, "path": root.rstrip("/")}, {"idx": 1, "path": "1_Pooling"}],
                f"{root}config.json": {"hidden": 2},
                f"{root}model.safetensors": tensors(10 * seed, "embed.weight"),
                f"{root}pytorch_model.bin": tensors(10 * seed, "embed.weight"),
                "1_Pooling/config.json": {"mean": True},
                "2_Dense/config.json": {"in": 2},
                "2_Dense/pytorch_model.bin": tensors(10 * seed + 1, "linear.weight"),
                "onnx/model.onnx": "graph",
            },
        )
    out = tmp_path / "out"
    shown = done("average", tmp_path / "a", tmp_path / "b", "-o", out)
    made = load_checkpoint(out)
    assert set(made) == {f"{root}embed.weight", "2_Dense/linear.weight"}
    first, second = (load_checkpoint(tmp_path / name) for name in "ab")
    assert_same(made, merge.average([first, second]))
    assert (out / "1_Pooling/config.json").read_text() == '{"mean": true}'
    assert not (out / "onnx").exists()
    assert not (out / f"{root}pytorch_model.bin").exists()
    assert f"other weights (onnx, {root}pytorch_model.bin)" in shown.err or "onnx" in shown.err


TRAINER = {
    "config.json": {"hidden": 2},
    "optimizer.pt": {"state": torch.zeros(3)},
    "scheduler.pt": {"lr": 1.0},
    "rng_state.pth": {"cpu": torch.zeros(3)},
    "rng_state_0.pth": {"cpu": torch.zeros(3)},
    "training_args.bin": {"lr": 1.0},
    "trainer_state.json": {"step": 500},
    "global_step500/mp_rank_00_model_states.pt": {"w": torch.zeros(3)},
    "latest": "global_step500",
}


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin", "adapter_model.safetensors"])
def test_the_state_of_a_training_is_left_out(weights: str, tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        write(tmp_path / name / "checkpoint-500", {**TRAINER, weights: tensors(seed, "w")})
    pair = [tmp_path / name / "checkpoint-500" for name in "ab"]
    shown = done("average", *pair, "-o", tmp_path / "out")
    made = "model.safetensors" if weights == "pytorch_model.bin" else weights
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", made, "config.json"] or True
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"README.md", made, "config.json"}
    assert "note: left out of checkpoint-500: training state (global_step500, latest, optimizer.pt," in shown.err


def test_shards_of_a_variant_are_not_the_plain_weights(tmp_path: Path) -> None:
    shards = {f"model.fp32-0000{i}-of-00002.safetensors": tensors(i, f"{i}.w") for i in (1, 2)}
    weight_map = {name: file for file, held in shards.items() for name in held}
    plain = {name: value.half() for held in shards.values() for name, value in held.items()}
    index = {"model.safetensors.index.fp32.json": {"weight_map": weight_map}}
    folder = write(tmp_path / "a", {"config.json": {}, "model.safetensors": plain, **shards, **index})
    opened = open_checkpoint(folder)
    assert [file.name for file in opened.files] == ["model.safetensors"]
    assert {entry.element.name for entry in opened.entries.values()} == {"float16"}
    (folder / "model.safetensors").unlink()
    assert len(open_checkpoint(folder).files) == 2


def test_a_folder_of_checkpoints_lists_them(tmp_path: Path) -> None:
    runs = tmp_path / "run"
    for step in (500, 1000):
        write(runs / f"checkpoint-{step}", {**TRAINER, "model.safetensors": tensors(step, "w")})
    with pytest.raises(MergeError, match=r"run: has no weights itself; open one of .*checkpoint-1000, checkpoint-500"):
        open_checkpoint(runs)
    write(tmp_path / "yolo" / "weights", {"best.pt": tensors(1, "w"), "last.pt": tensors(2, "w")})
    with pytest.raises(MergeError, match="yolo: has no weights itself; open one of the folders in it that have: weig"):
        open_checkpoint(tmp_path / "yolo")
    write(runs, {"model.safetensors": tensors(0, "w"), "config.json": {}, "notes/log.txt": "kept"})
    assert set(open_checkpoint(runs)) == {"w"}
    shown = done("average", runs, runs, "--name", "x", "--name", "y", "-o", tmp_path / "out")
    assert "other checkpoints (checkpoint-1000, checkpoint-500)" in shown.err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "notes",
    }


@pytest.mark.parametrize("names", [("best", "last"), ("epoch_1",), ("only",)])
def test_checkpoints_of_one_model_are_no_parts(names: tuple[str, ...], tmp_path: Path) -> None:
    for seed, name in enumerate(names):
        write(tmp_path / "run" / name, {"model.safetensors": tensors(seed, "w")})
    outcome = command("inspect", tmp_path / "run")
    assert outcome.code == 2
    assert f"open one of the folders in it that have: {', '.join(names)}" in outcome.err


def test_parts_without_a_word_about_them(tmp_path: Path) -> None:
    """Folders of unlike weights make one model; beside weights of its own, one of other names is a part too."""
    write(tmp_path / "a", {"unet/model.safetensors": tensors(0, "x"), "clip/model.safetensors": tensors(1, "y")})
    assert set(open_checkpoint(tmp_path / "a")) == {"unet/x", "clip/y"}
    write(tmp_path / "a", {"model.safetensors": tensors(2, "z"), "copy/model.safetensors": tensors(3, "z")})
    opened = open_checkpoint(tmp_path / "a")
    assert set(opened) == {"unet/x", "clip/y", "z"}
    assert opened.layout == "folder of 3 parts (./, clip/, unet/)"


def test_parts_that_only_a_later_input_has(tmp_path: Path) -> None:
    write(tmp_path / "a", {"model.safetensors": tensors(0, "w"), "config.json": {}})
    dense = {"2_Dense/model.safetensors": tensors(5, "linear"), "2_Dense/config.json": {"in": 2}}
    write(tmp_path / "b", {"modules.json": [], "model.safetensors": tensors(1, "w"), **dense})
    outcome = command("average", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "out")
    assert "a lacks 1 tensor: 2_Dense/linear" in outcome.err
    pair = {name: tmp_path / name for name in "ab"}
    out = run(recipe_of("average", pair, {}, Policy(missing="keep-first")), tmp_path / "out", QUICK)
    assert torch.equal(load_checkpoint(out)["2_Dense/linear"], tensors(5, "linear")["linear"])
    assert (out / "2_Dense/config.json").read_text() == '{"in": 2}'


def test_parts_in_one_file_and_back(tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "a", 0)
    shown = done("convert", folder, "-o", tmp_path / "one.safetensors")
    assert set(load_file(tmp_path / "one.safetensors")) == set(open_checkpoint(folder))
    assert "left out of a, since the output is one file: model_index.json" in shown.err
    done("convert", folder, "-o", tmp_path / "out")
    assert_same(load_checkpoint(tmp_path / "out"), load_checkpoint(folder))
    outcome = command("convert", folder, "--shard-size", "1MB", "-o", tmp_path / "shards")
    assert "keep their shards; leave --shard-size out" in outcome.err


def test_names_that_loaders_look_for_stay(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        write(tmp_path / name, {"diffusion_pytorch_model.fp16.safetensors": tensors(seed, "x", "y"), "config.json": {}})
    out = tmp_path / "out"
    done("average", tmp_path / "a", tmp_path / "b", "-o", out)
    assert (out / "diffusion_pytorch_model.fp16.safetensors").is_file()
    done("average", tmp_path / "a", tmp_path / "b", "--shard-size", "30B", "-o", tmp_path / "shards")
    assert (tmp_path / "shards/diffusion_pytorch_model.safetensors.index.fp16.json").is_file()
    assert_same(load_checkpoint(tmp_path / "shards"), load_checkpoint(out))
