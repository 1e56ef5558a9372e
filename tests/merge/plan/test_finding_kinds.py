"""Findings by the layouts that tools really write: quantisers, adapters, wrappers, configurations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import merge
from merge.checkpoint.scaled import stated
from merge.plan.findings import Facts, Finding, examine
from merge.plan.policy import Policy
from merge.plan.units import decisions
from tests.merge.plan.finding_pairs import LABELS, folder, model

F8 = torch.float8_e4m3fn


def asked(inputs: Sequence[Any], policy: Policy | None = None) -> list[Finding]:
    """What a merge is told of its inputs."""
    opened = [merge.open_checkpoint(item) if isinstance(item, Path) else item for item in inputs]
    labels, chosen = LABELS[: len(opened)], policy or Policy()
    described = [stated(item) for item in opened]
    return examine(Facts(labels, described, chosen, False, opened, decisions(opened, described, labels, chosen)))


def codes(inputs: Sequence[Any], policy: Policy | None = None) -> list[str]:
    return [item.code for item in asked(inputs, policy)]


def made(layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> dict[str, Tensor]:
    return {name: torch.ones(shape).to(dtype) for name, (dtype, shape) in layout.items()}


HALF, FULL, I32, U8, I8 = torch.bfloat16, torch.float32, torch.int32, torch.uint8, torch.int8
QUANTISED = {
    "DeepSeek": {"l.weight": (F8, (256, 256)), "l.weight_scale_inv": (FULL, (2, 2))},
    "compressed-tensors fp8": {
        "l.weight": (F8, (8, 8)),
        "l.weight_scale": (HALF, (8, 1)),
        "l.input_scale": (HALF, (1,)),
    },
    "modelopt": {"l.weight": (F8, (8, 8)), "l.weight_scale": (FULL, ()), "l.input_scale": (FULL, ())},
    "ComfyUI": {"scaled_fp8": (F8, (2,)), "l.weight": (F8, (8, 8)), "l.scale_weight": (FULL, (1,))},
    "no weight in the name": {"experts.gate_up_proj": (F8, (2, 8, 8)), "experts.gate_up_proj_scale": (FULL, (2, 1, 1))},
    "mxfp4": {"e.gate_up_proj_blocks": (U8, (2, 4, 2, 16)), "e.gate_up_proj_scales": (U8, (2, 4, 2))},
    "GPTQ": {
        "l.qweight": (I32, (8, 8)),
        "l.qzeros": (I32, (1, 1)),
        "l.scales": (torch.float16, (1, 8)),
        "l.g_idx": (I32, (64,)),
    },
    "AWQ": {"l.qweight": (I32, (64, 1)), "l.qzeros": (I32, (1, 1)), "l.scales": (torch.float16, (1, 8))},
    "bitsandbytes 4 bits": {
        "l.weight": (U8, (32, 1)),
        "l.weight.absmax": (FULL, (1,)),
        "l.weight.quant_map": (FULL, (16,)),
        "l.weight.quant_state.bitsandbytes__nf4": (U8, (80,)),
    },
    "bitsandbytes 8 bits": {"l.weight": (I8, (8, 8)), "l.SCB": (FULL, (8,)), "l.weight_format": (U8, ())},
    "compressed-tensors int4": {
        "l.weight_packed": (I32, (8, 1)),
        "l.weight_scale": (HALF, (8, 1)),
        "l.weight_shape": (torch.int64, (2,)),
    },
    "W8A8": {"l.weight": (I8, (8, 8)), "l.weight_scale": (FULL, (8, 1))},
    "HQQ": {"l.W_q": (U8, (8, 4)), "l.scale": (HALF, (8, 1)), "l.zero": (HALF, (8, 1))},
    "quanto": {"l.weight._data": (I8, (8, 8)), "l.weight._scale": (HALF, (8, 1))},
    "torchao in safetensors": {"l._weight_qdata": (I8, (8, 8)), "l._weight_scale": (HALF, (8, 1))},
    "EXL2": {"l.q_weight": (I32, (4, 8)), "l.q_scale": (I32, (1, 1)), "l.q_scale_max": (torch.float16, (1,))},
    "NVFP4": {"l.weight": (U8, (8, 4)), "l.weight_scale": (F8, (8, 1)), "l.weight_scale_2": (FULL, ())},
    "MLX": {"l.weight": (torch.uint32, (8, 1)), "l.scales": (HALF, (8, 1)), "l.biases": (HALF, (8, 1))},
    "modelopt in torch": {"l.weight": (I8, (8, 8)), "l.weight_quantizer._amax": (FULL, (8, 1))},
}


@pytest.mark.parametrize("tool", QUANTISED)
def test_scales_beside_weights_are_seen(tool: str) -> None:
    state = made(QUANTISED[tool])
    (found,) = [item for item in asked([state, state]) if item.code == "scaled-weights"]
    fp8 = tool in ("DeepSeek", "compressed-tensors fp8", "modelopt", "ComfyUI", "no weight in the name")
    assert ("dequantize=True" in found.advice) == fp8


SOUND = {
    "logit scale": {"logit_scale": (FULL, ()), "visual.proj": (FULL, (8, 8))},
    "layer scale": {"blocks.0.ls1.gamma": (FULL, (8,)), "blocks.0.weight_scale": (FULL, (8,))},
    "weight norm": {"conv.weight_g": (FULL, (8, 1, 1)), "conv.weight_v": (FULL, (8, 8, 3))},
    "masks": {"attn.bias": (U8, (1, 1, 64, 64)), "attn.scale": (FULL, (1,)), "attn.out.weight": (FULL, (8, 8))},
    "places": {"attn.logit_scale": (FULL, (2, 1, 1)), "attn.relative_position_index": (I32, (16, 16))},
    "counters": {"m.scale": (FULL, (8,)), "m.step": (I32, (1,)), "n.num_zeros": (I32, ()), "n.table": (I32, (8, 8))},
    "BatchNorm": {"bn.weight": (FULL, (8,)), "bn.num_batches_tracked": (torch.int64, ())},
    "snake": {"decoder.snake.alpha": (FULL, (1, 8, 1)), "decoder.conv.weight": (FULL, (8, 8, 3))},
    "adapter layers": {
        "layers.0.adapter.down_proj.weight": (FULL, (2, 8)),
        "layers.0.adapter.up.weight": (FULL, (8, 2)),
    },
    "buckets": {"encoder.image_rp_bucket": (torch.int64, (4, 4)), "token_rp_bucket": (torch.int64, (4, 4))},
    "empty buffer": {"w": (FULL, (8, 8)), "anchors": (FULL, (0,))},
    "routers": {"moe.gate.weight": (HALF, (8, 8)), "moe.gate.e_score_correction_bias": (FULL, (8,))},
}


@pytest.mark.parametrize("what", SOUND)
def test_sound_weights_are_told_nothing(what: str) -> None:
    state = made(SOUND[what])
    assert codes([state, {name: value.clone() for name, value in state.items()}]) == []


ADAPTERS = [
    {"base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight"},
    {"q.lora_A.default.weight", "q.lora_B.default.weight", "q.lora_magnitude_vector.default.weight"},
    {"embed.lora_embedding_A", "embed.lora_embedding_B"},
    {"lora_unet_down.lora_up.weight", "lora_unet_down.lora_down.weight", "lora_unet_down.alpha"},
    {"lora_te_fc1.hada_w1_a", "lora_te_fc1.hada_w1_b", "lora_te_fc1.hada_w2_a", "lora_te_fc1.alpha"},
    {"lora_unet_x.lokr_w1", "lora_unet_x.lokr_w2_a", "lora_unet_x.lokr_w2_b"},
    {"base_model.model.k.ia3_l"},
    {"unet.to_q_lora.up.weight", "unet.to_q_lora.down.weight"},
    {"unet.attn.processor.to_q_lora.lora.up.weight", "unet.attn.processor.to_q_lora.lora.down.weight"},
    {"base_model.model.q.oft_r"},
    {"base_model.model.q.vera_lambda_b", "base_model.model.q.vera_lambda_d"},
    {"prompt_embeddings"},
    {"q.bone_block"},
    {"q.vblora_logits_A", "q.vblora_logits_B"},
    {"q.lora_a.weight", "q.lora_b.weight"},
]


@pytest.mark.parametrize("names", ADAPTERS, ids=lambda names: min(names))
def test_factors_of_adapters_are_seen(names: set[str]) -> None:
    state = {name: torch.ones(2, 2) for name in sorted(names)}
    (found,) = [item for item in asked([state, state]) if item.code == "adapter-factors"]
    assert "unival-merge adapters" in found.advice


def test_factors_inside_a_whole_model_are_seen() -> None:
    whole = {**model(), "fc.lora_A.weight": torch.ones(2, 4), "fc.lora_B.weight": torch.ones(4, 2)}
    assert codes([whole, whole]) == ["adapter-factors"]


def test_a_folder_that_says_it_is_an_adapter(tmp_path: Path) -> None:
    pair = [folder(tmp_path / name, model(), adapter_config={"peft_type": "FOURIERFT"}) for name in LABELS]
    (found,) = asked(pair)
    assert "FOURIERFT adapter" in found.text


# -- wrappers ----------------------------------------------------------------------------------------------------------

PLAIN = {f"layers.{index}.fc.weight": torch.ones(2, 2) for index in range(3)} | {"head.weight": torch.ones(2)}


@pytest.mark.parametrize(
    ("change", "rules"),
    [
        (lambda name: f"module.{name}", "'b:module.='"),
        (lambda name: f"_orig_mod.{name}", "'b:_orig_mod.='"),
        (lambda name: f"model.diffusion_model.{name}", "'b:model.diffusion_model.='"),
        (lambda name: name.replace("layers.", "layers._orig_mod."), "'b:*._orig_mod.*=*.*'"),
        (lambda name: name.replace("fc.", "fc.module."), "'b:*.module.*=*.*'"),
        (
            lambda name: "_orig_mod." + name.replace("fc.", "fc._orig_mod."),
            "['b:_orig_mod.=', 'b:*._orig_mod.*=*.*']",
        ),
        (lambda name: f"encoder.{name}", "'b:encoder.='"),
    ],
    ids=["module", "compiled", "two", "inside", "module inside", "both", "any"],
)
def test_the_very_rule_is_told(change: Any, rules: str) -> None:
    (found,) = asked([PLAIN, {change(name): value for name, value in PLAIN.items()}])
    assert found.code == "names-prefixed"
    assert f"pass rename={rules} " in found.advice


def test_a_prefix_of_most_names_and_two_prefixes() -> None:
    more = {f"model.{name}": value for name, value in PLAIN.items()} | {"criterion.weight": torch.ones(1)}
    (found,) = asked([PLAIN, more])
    assert "rename='b:model.='" in found.advice
    (found,) = asked([{f"module.{n}": v for n, v in PLAIN.items()}, {f"model.{n}": v for n, v in PLAIN.items()}])
    assert "rename='a:module.=model.'" in found.advice


def test_another_spelling_of_the_same_tensors() -> None:
    old = {**PLAIN, "conv.weight_g": torch.ones(1), "conv.weight_v": torch.ones(2)}
    new = {**PLAIN, **{f"conv.parametrizations.weight.original{index}": torch.ones(index + 1) for index in (0, 1)}}
    (found,) = asked([old, new], Policy(missing="keep-first"))
    rules = ["*.parametrizations.weight.original0=*.weight_g", "*.parametrizations.weight.original1=*.weight_v"]
    assert f"rename={[f'b:{rule}' for rule in rules]} " in found.advice
    assert list(merge.average([old, merge.renamed(new, rules)])) == list(old)
    scaled = {**PLAIN, "layers.0.fc.gamma": torch.ones(2)}
    assert codes([PLAIN, scaled], Policy(missing="keep-first")) == []


@pytest.mark.parametrize("missing", ["error", "keep-first", "union"])
def test_nothing_shared_is_refused_whatever_is_missing(missing: str) -> None:
    with pytest.raises(merge.MergeError, match="a shares no name with the others"):
        merge.average({"a": {"x.w": torch.ones(2)}, "b": {"y.v": torch.ones(2)}}, policy=Policy(missing=missing))


def test_a_part_that_one_alone_has_is_no_prefix() -> None:
    audio = {f"encoder.audio.{index}.weight": torch.ones(2) for index in range(3)}
    assert codes([PLAIN, {**PLAIN, **audio}], Policy(missing="keep-first")) == []


# -- configurations ----------------------------------------------------------------------------------------------------

GRAVE, MILD = ["config-meaning"], ["config-differs"]


@pytest.mark.parametrize(
    ("one", "two", "told"),
    [
        ({"num_attention_heads": 4}, {"num_attention_heads": 2}, GRAVE),
        ({"num_attention_heads": 4}, {"num_attention_heads": 4, "num_key_value_heads": 4}, []),
        ({"num_attention_heads": 4}, {"num_attention_heads": 4, "num_key_value_heads": 2}, GRAVE),
        ({"n_head": 4}, {"n_head": 2}, GRAVE),
        ({"rope_theta": 10000.0}, {"rope_theta": 500000.0}, GRAVE),
        ({}, {"rope_theta": 10000}, []),
        ({"x_version": 1}, {"rope_theta": 500000.0}, GRAVE),
        (
            {"rope_theta": 10000.0, "rope_scaling": None},
            {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}},
            [],
        ),
        (
            {"rotary_emb_base": 10000, "rotary_pct": 0.25},
            {"rope_parameters": {"rope_theta": 10000, "rope_type": "default", "partial_rotary_factor": 0.25}},
            [],
        ),
        (
            {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
            {
                "rope_parameters": {
                    "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
                    "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
                }
            },
            [],
        ),
        ({"partial_rotary_factor": 0.5}, {"rope_parameters": {"partial_rotary_factor": 0.25}}, GRAVE),
        ({}, {"position_embedding_type": "absolute"}, []),
        ({"rope_scaling": None}, {"rope_scaling": {"type": "linear", "factor": 2.0}}, GRAVE),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            [],
        ),
        ({"hidden_act": "silu"}, {"hidden_act": "gelu"}, GRAVE),
        ({"do_layer_norm_before": True}, {"do_layer_norm_before": False}, GRAVE),
        ({"embedding_multiplier": 12}, {"embedding_multiplier": 1}, GRAVE),
        ({"model_type": "llama"}, {"model_type": "mistral"}, GRAVE),
        ({"text_config": {"num_attention_heads": 4}}, {"text_config": {"num_attention_heads": 2}}, GRAVE),
        ({"layer_norm_eps": 1e-5}, {"layer_norm_eps": 1e-12}, MILD),
        ({"sliding_window": 4096}, {"sliding_window": None}, MILD),
        ({"nobody_knows": 1}, {"nobody_knows": 2}, MILD),
        ({"tie_word_embeddings": True}, {"tie_word_embeddings": False}, []),
        ({"_name_or_path": "a", "use_cache": True}, {"_name_or_path": "b", "use_cache": False}, []),
        ({"transformers_version": "4.1", "torch_dtype": "float32"}, {"dtype": "bfloat16"}, []),
        ({"attention_dropout": 0.1, "initializer_range": 0.02}, {"attention_dropout": 0.0}, []),
        ({"mlp_bias": False, "pad_token_id": None}, {"eos_token_id": 3}, []),
    ],
)
def test_configurations(tmp_path: Path, one: Any, two: Any, told: list[str]) -> None:
    pair = [folder(tmp_path / name, model(), config=config) for name, config in zip(LABELS, (one, two), strict=True)]
    assert codes(pair) == told


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"do_rescale": True, "rescale_factor": 0.00392156862745098}, []),
        ({"do_rescale": False}, GRAVE),
        ({"mel_filters": [[0.0]]}, []),
    ],
)
def test_what_newer_programs_write_of_images_and_sounds(tmp_path: Path, more: Any, told: list[str]) -> None:
    common = {"image_mean": [0.5], "do_normalize": True}
    pair = [folder(tmp_path / name, model(), preprocessor_config=common) for name in LABELS]
    (pair[1] / "preprocessor_config.json").write_text(json.dumps({**common, **more}))
    assert codes(pair) == told


def test_tokens_without_a_row_and_signs_that_end_lines(tmp_path: Path) -> None:
    vocabulary = {"model": {"vocab": {letter: row for row, letter in enumerate("abcd")}}}
    pair = [
        folder(tmp_path / pad, model(), tokenizer={**vocabulary, "added_tokens": [{"id": 4, "content": pad}]})
        for pad in ("pad", "PAD")
    ]
    assert codes(pair) == []
    for path, lines in zip(pair, ("a\n\u2028\nc\n", "a\n\u2029\nc\nd\n"), strict=True):
        (path / "tokenizer.json").unlink()
        (path / "vocab.txt").write_text(lines)
    (found,) = asked(pair)
    assert "1 rows are other tokens, as row 1" in found.text


@pytest.mark.parametrize(
    ("name", "one", "two"),
    [
        ("params", {"n_heads": 4, "rope_theta": 1e4}, {"n_heads": 4, "rope_theta": 5e5}),
        ("open_clip_config", {"model_cfg": {"quick_gelu": True}}, {"model_cfg": {}}),
    ],
)
def test_configurations_of_other_programs(tmp_path: Path, name: str, one: Any, two: Any) -> None:
    pair = [
        folder(tmp_path / label, model(), **{name: config}) for label, config in zip(LABELS, (one, two), strict=True)
    ]
    assert codes(pair) == GRAVE


def test_modules_that_pool_otherwise(tmp_path: Path) -> None:
    pair = [folder(tmp_path / name, model(), modules=[]) for name in LABELS]
    for path in pair:
        (path / "1_Pooling").mkdir()
        (path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": path.name == "a"}))
    assert codes(pair) == GRAVE


def test_a_pipeline_says_what_it_predicts(tmp_path: Path) -> None:
    pair: list[Path] = []
    for name, kind in (("a", "epsilon"), ("b", "v_prediction")):
        folder(tmp_path / name / "unet", model(), config={"sample_size": 64})
        (tmp_path / name / "scheduler").mkdir()
        (tmp_path / name / "scheduler" / "scheduler_config.json").write_text(
            json.dumps({"prediction_type": kind, "_class_name": name})
        )
        (tmp_path / name / "model_index.json").write_text(
            json.dumps({"_class_name": "Pipeline", "unet": ["diffusers", "UNet"], "scheduler": ["diffusers", "S"]})
        )
        pair.append(tmp_path / name)
    (found,) = asked(pair)
    assert found.code == "config-meaning"
    assert "scheduler/scheduler_config.json: prediction_type" in found.text


def test_what_training_files_note_of_the_model(tmp_path: Path) -> None:
    def file(name: str, **model_: Any) -> Path:
        cfg = {"model": {"encoder_attention_heads": 4, "activation_fn": "gelu", **model_}, "optimization": {"lr": name}}
        torch.save({"model": model(), "cfg": cfg}, tmp_path / f"{name}.pt")
        return tmp_path / f"{name}.pt"

    same = file("a")
    assert codes([same, file("b", data=["x"], resnet_drop_path_rate=0.1)]) == []
    (found,) = asked([same, file("c", encoder_attention_heads=2)])
    assert found.code == "config-meaning"
    assert "entry cfg: model.encoder_attention_heads is 4 in a and 2 in b" in found.text
    assert codes([same, file("d", scale_heads=True)]) == GRAVE
    pair: list[Path] = []
    for name in LABELS:
        options = {"model_type": name, "lr_multiplier": len(pair), "loss": {"multiplier": len(pair)}}
        torch.save({"model": model(), "args": options}, tmp_path / f"{name}.pt")
        pair.append(tmp_path / f"{name}.pt")
    assert codes(pair) == []


def test_classes_of_training_files(tmp_path: Path) -> None:
    files: list[Path] = []
    for name, classes in (("a", ["cat", "dog"]), ("b", ["dog", "cat"])):
        torch.save({"state_dict": {"fc.weight": torch.ones(2, 4)}, "classes": classes}, tmp_path / f"{name}.pt")
        files.append(tmp_path / f"{name}.pt")
    (found,) = asked(files)
    assert (found.code, found.tensors) == ("labels-differ", ("fc.weight",))


# -- indices -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        (torch.arange(5.0), torch.arange(5.0), []),
        (torch.arange(5), torch.arange(5.0), []),
        (torch.arange(5.0), torch.arange(5).half(), []),
        (torch.tensor([0.0, 1.0, 2.0001]), torch.arange(3.0), []),
        (torch.arange(4000.0), torch.arange(4000.0).half(), []),
        (torch.arange(5.0), torch.arange(5.0) + 1, ["indices-differ"]),
        (torch.tensor([0.5, 0.25]), torch.tensor([0.1, 0.2]), []),
    ],
)
@pytest.mark.parametrize("name", ["embeddings.position_ids", "attn.relative_position_index", "image_rp_bucket"])
def test_indices_stored_as_floats(first: Tensor, second: Tensor, told: list[str], name: str) -> None:
    pair = [{**model(seed), name: value} for seed, value in enumerate((first, second))]
    assert codes(pair) == told
    if not told and first[0] == 0:
        merged = merge.average(pair, weights=[0.3, 0.7])[name]
        assert torch.equal(merged.double(), torch.arange(len(first)).double())
