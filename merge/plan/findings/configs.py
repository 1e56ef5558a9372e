"""Checks of configurations: a list of keys that do not matter; what changes the meaning of tensors is refused."""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from merge.plan.depth import COUNT
from merge.plan.findings.facts import Facts
from merge.plan.findings.kinds import Seen, by_value
from merge.plan.findings.sidecars import Sidecars

# Keys that change what the same tensors compute, by the last component of their dotted names.
MEANING = re.compile(
    r"""
      (\w+_)?(num|n)_(\w+_)?(kv_)?heads? | (encoder_|decoder_)?(attention_)?heads | nhead | attention_head_dim
    | num_key_value_heads | n_kv_heads | multi_query(_group_num)? | head_dim | d_kv | (qk|v)_(nope_|rope_)?head_dim
    | rope_\w+ | rotary_\w+ | partial_rotary_factor | position_embedding_type | alibi | use_alibi
    | relative_attention_max_distance | hidden_act(ivation)? | activation(_function|_fn)? | act(_fn|ivation_type)?
    | feed_forward_proj | mlp_activation | \w+_act | quick_gelu | pooling_mode_\w+
    | (do_layer_norm_before|pre_?norm|norm_first|(\w+_)?normalize_before|norm_position|norm_type|qk_norm|layernorm_type)
    | apply_residual_connection_post_layernorm | (use_)?parallel_(residual|attn) | new_decoder_architecture
    | (embedding|residual|attention|logits?|lm_head|key|query|mlp|ssm|ffn)(_in|_out)?_multipliers? | logits_scaling
    | scale_(attn|fc|heads|resids|embeddings?|emb|depth|attn_weights|attn_by_inverse_layer_idx) | no_scale_embedding
    | attn_scale_factor | query_pre_attn_scalar | \w+_softcapping | (vae_)?scaling_factor | shift_factor
    | norm_num_groups | num_groups | model_type | prediction_type | parameterization | beta_(start|end|schedule)
    | hop_(size|length) | interpolate_position | orig_patch_image_size
    | num_train_timesteps | trained_betas | image_mean | image_std | rescale_factor | do_rescale | do_normalize
    """,
    re.VERBOSE,
)
# Keys that tell nothing of what the tensors are. Any other that differs is a warning.
NEUTRAL = re.compile(
    r"""
      _.* | name_or_path | \w+_version | (torch_)?dtype | use_cache | auto_map | (use_)?flash_attn\w*
    | attn_implementation | pretraining_tp | gradient_checkpointing\w* | (use_)?return_dict\w*
    | output_(attentions|hidden_states|scores|past|router_logits)
    | initializer_\w+ | init_\w+ | \w*_init\w* | \w*dropout\w* | \w*drop_?path\w* | \w*pdrop | \w*drop_rate
    | \w*layerdrop | mask_(time|feature)_\w+ | apply_spec_augment
    | \w*(bos|eos|pad|sep|cls|mask|unk|decoder_start)_token(_id|_index)? | id2label | label2id | num_labels
    | problem_type | finetuning_task | architectures | task_specific_params | temperature | top_[kp] | typical_p
    | do_sample | (max|min)_(new_)?(length|tokens) | num_beams | num_beam_groups | \w*_penalty | no_repeat_\w+
    | early_stopping | num_return_sequences | remove_invalid_values | bad_words_ids | (begin_)?suppress_tokens
    | forced_\w+ | prefix | chunk_size_feed_forward | torchscript | pruned_heads | tokenizer_class | processor_class
    | \w+_processor_type | feature_extractor_type | resample | \w*loss\w* | ctc_\w+ | use_bfloat16
    | label_smoothing\w* | router_\w*coef | use_cache\w* | tie_word_embeddings | tie_encoder_decoder | vocab_size
    | vocabulary_size | mel_filters | quantization_config | unsloth\w* | transformers\w* | sample_size
    | cross_attention_hidden_size | sagemaker\w* | training\w* | language | bad_words\w* | exponential_decay\w*
    """,
    re.VERBOSE,
)
# What a key that is not there means, where every library agrees.
DEFAULTS: Mapping[str, Any] = {
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "partial_rotary_factor": 1.0,
    "position_embedding_type": "absolute",
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}
# What transformers 5 calls the rotary keys of single architectures.
_RENAMED = {
    "rotary_emb_base": "rope_theta",
    "rotary_pct": "partial_rotary_factor",
    "global_rope_theta": "rope_theta",
    "local_rope_theta": "rope_local_base_freq",
}
# Sections of a training file's configuration that are about the model.
MODEL = re.compile(
    r"(model|task|network|net|arch|architecture|model_config|model_args|config|init_args|encoder|decoder|backbone)"
)
_SHOWN = 6
_ABSENT = object()


class _Derived(int):
    """A number that follows from others where it is not given."""


def config_meaning(facts: Facts) -> Iterator[Seen]:
    """Keys by which the same tensors compute something else."""
    found = [text for text, grave in _differing(facts) if grave]
    if found:
        advice = (
            "the merged model would have the first's configuration, which the others were not trained with: merge "
            "checkpoints of one configuration"
        )
        yield Seen(_joined(found), advice)


def config_differs(facts: Facts) -> Iterator[Seen]:
    """Keys that may matter and of which nothing is known here."""
    found = [text for text, grave in _differing(facts) if not grave]
    if found:
        yield Seen(_joined(found), "the merged model has the first's configuration: see that it is the one you mean")


def _joined(found: list[str]) -> str:
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return "configurations differ: " + "; ".join(found[:_SHOWN]) + more


def _differing(facts: Facts) -> Iterator[tuple[str, bool]]:
    """Each key that differs and is not neutral, with its values, and whether it changes what the tensors mean."""
    if len(facts.sidecars) < 2:
        return
    each = [_described(item) for item in facts.sidecars]
    for source in dict.fromkeys(name for item in each for name in item):
        holders = [index for index, item in enumerate(each) if source in item]
        if len(holders) < 2:
            continue
        values = [each[index][source] for index in holders]
        labels = [facts.labels[index] for index in holders]
        strict = source.endswith(".json") and "scheduler" not in source
        for key in dict.fromkeys(key for item in values for key in item):
            leaf = key.rpartition(".")[2]
            if facts.stacked and (COUNT.fullmatch(leaf) or leaf == "layer_types"):
                continue  # they follow the result
            found = [item.get(key, DEFAULTS.get(leaf, _ABSENT)) for item in values]
            present = [value for value in found if value is not _ABSENT]
            if all(isinstance(value, _Derived) for value in present):
                continue
            if all(_same(present[0], value) for value in present[1:]) and (
                len(present) == len(found) or not present[0]
            ):
                continue
            known = MEANING.fullmatch(leaf) is not None
            grave = known and (len(present) == len(found) or any(_empty(item) or item is True for item in present))
            if grave or (strict and (known or not any(map(NEUTRAL.fullmatch, key.split("."))))):
                shown = ["not given" if value is _ABSENT else json.dumps(value)[:60] for value in found]
                yield f"{source}: {key} is {by_value(labels, shown)}", grave


def _empty(value: Any) -> bool:
    return value in (None, False, 0, "") or value == [] or value == {}


def _same(first: Any, second: Any) -> bool:
    if bool in (type(first), type(second)) and not (_empty(first) and _empty(second)):
        return first is second
    return first == second or (_empty(first) and _empty(second))


def _described(sidecars: Sidecars) -> dict[str, dict[str, Any]]:
    """All that describes the model, flat, by where it is written; adapter_config.json is for `adapters`."""
    found = {name: _flat(value) for name, value in sidecars.configs.items() if not name.endswith("adapter_config.json")}
    for name, value in sidecars.noted.items():
        parts = {key: item for key, item in value.items() if MODEL.fullmatch(key) or not isinstance(item, dict)}
        parts.pop("model_type", None)  # there the name of a size or a file
        found[f"entry {name}"] = _flat(parts)
    spec = {key.rpartition(".")[2]: value for key, value in sidecars.metadata.items() if key.startswith("modelspec.")}
    if "prediction_type" in spec:
        found["metadata"] = {"prediction_type": spec["prediction_type"]}
    return found


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration with dotted keys, and with what derives from other keys as if it were given."""
    config = _derived(config)
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value and key not in ("id2label", "label2id", "rope_scaling"):
            found |= _flat(value, f"{prefix}{key}.")
        elif value is not None or key in DEFAULTS:
            found[prefix + key] = value
    return found


def _derived(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary embeddings in one form, and the head sizes that libraries derive where they are not given."""
    found = {_RENAMED.get(key, str(key)): value for key, value in config.items()}
    rotary = found.pop("rope_parameters", None)
    if isinstance(rotary, dict):
        local = rotary.get("sliding_attention")  # one for each kind of layers, as in Gemma 3
        if isinstance(local, dict):
            found.setdefault("rope_local_base_freq", local.get("rope_theta"))
        rotary = dict(whole if isinstance(whole := rotary.get("full_attention"), dict) else rotary)
        for key in {"rope_theta", "partial_rotary_factor"} & rotary.keys():
            found.setdefault(key, rotary.pop(key))
        found["rope_scaling"] = rotary
    scaling = found.get("rope_scaling")
    if isinstance(scaling, dict):
        scaling = dict(scaling)
        scaling.setdefault("rope_type", scaling.pop("type", "default"))
        scaling.pop("type", None)
        found["rope_scaling"] = None if scaling["rope_type"] == "default" and len(scaling) == 1 else scaling
    heads, size = found.get("num_attention_heads"), found.get("hidden_size")
    if isinstance(heads, int) and heads > 0:
        if found.get("num_key_value_heads") is None:
            found["num_key_value_heads"] = _Derived(heads)
        if found.get("head_dim") is None and isinstance(size, int):
            found["head_dim"] = _Derived(size // heads)
    return found
