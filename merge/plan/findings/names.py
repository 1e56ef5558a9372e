"""Checks of names: factors of adapters, wrappers' prefixes, models that share nothing, placeholders."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from merge.plan.findings.facts import Description, Facts
from merge.plan.findings.kinds import Seen, counted, listed, prefixes

# What adapters are made of, by the component that tells: peft's, kohya's and LyCORIS's, diffusers' names.
LOW_RANK = re.compile(
    r"(?:^|[._])(lora_(?:A|B|E|embedding_A|embedding_B|magnitude_vector|up|down|mid)|lora\.(?:up|down))(?:\.|$)"
)
OTHER = re.compile(
    r"(?:^|\.)(hada_(?:w1|w2|t1|t2)(?:_[ab])?|lokr_(?:w1|w2|t1|t2)(?:_[ab])?|ia3_l|dora_scale|oft_(?:r|R|s|blocks|diag)|"
    r"boft_[RSs]|vera_(?:A|B|lambda_[bd])|fourierft_spectrum|hra_u|bone_|randlora_\w+|road_(?:theta|alpha)|"
    r"prompt_embeddings|adaption_(?:prompt|gate)|lora_linear_layer\.(?:up|down))(?:\.|$)"
)
ALPHA = (".alpha", ".dora_scale")
MANY = 4  # empty tensors in all inputs, from which on nobody meant them
# Wrappers that put a component into names: DataParallel, torch.compile, FSDP, activation checkpointing, Lightning.
WRAPPERS = ("_orig_mod.", "module.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "model.")


def adapter_factors(facts: Facts) -> Iterator[Seen]:
    """Factors whose product is the change: averaged apart they give another change."""
    for index, (label, spec) in enumerate(zip(facts.labels, facts.specs, strict=True)):
        low = [name for name in spec if LOW_RANK.search(name)]
        other = [name for name in spec if OTHER.search(name)]
        peft = facts.sidecars[index].peft_type if facts.sidecars else ""
        found = [name for name in (low or other or (spec if peft else ())) if name not in facts.decided]
        if not found:
            continue
        kind = peft or ("LoRA" if low else "")
        what = f"{kind} adapter" if kind else "adapter"
        text = f"{label} holds parts of a {what} ({listed(found, 2)}): its change of the model is no sum of them"
        yield Seen(text, _adapter_advice(bool(low), other), tuple(found))
        return


def _adapter_advice(low: bool, other: Sequence[str]) -> str:
    if low and not other:
        return "`unival-merge adapters` (merge.merge_adapters) merges LoRA folders of peft, alone or into their base"
    return (
        "`unival-merge adapters` does this for LoRA folders of peft alone: put each of these into its base with the "
        "tool that trained it, and merge the results"
    )


def placeholders(facts: Facts) -> Iterator[Seen]:
    """Empty tensors where others have weights, or nearly all empty: DeepSpeed's stand-ins for partitioned weights."""
    for label, spec in zip(facts.labels, facts.specs, strict=True):
        empty = [name for name in facts.wanted if name in spec and 0 in spec[name].shape]
        empty = [name for name in empty if spec[name].element.is_floating_point]
        floating = sum(1 for item in spec.values() if item.element.is_floating_point)
        elsewhere = [n for n in empty if any(n in other and 0 not in other[n].shape for other in facts.specs)]
        found = elsewhere or (empty if 2 * len(empty) > floating and len(empty) >= MANY else [])
        if found:
            yield Seen(
                f"{label} has {counted(len(found), 'tensor')} without an element: {listed(found)}",
                "DeepSpeed's ZeRO-3 leaves such placeholders: gather the weights with its zero_to_fp32.py, or train "
                "with stage3_gather_16bit_weights_on_model_save",
                tuple(found),
            )
            return


def nothing_shared(facts: Facts) -> Iterator[Seen]:
    """A checkpoint that shares no name with any other: whatever is missing, this is no merge."""
    if not all(facts.specs) or not facts.wanted:
        return
    if next(prefixed(facts), None) is not None:
        return
    for index, spec in enumerate(facts.specs):
        others = [other for place, other in enumerate(facts.specs) if place != index]
        mine = [name for name in spec if name not in facts.decided]
        if mine and not any(name in other for name in mine for other in others):
            theirs = next((name for other in others for name in other), "nothing")
            yield Seen(
                f"{facts.labels[index]} shares no name with the others: it has {mine[0]}, they have {theirs}",
                "these are different models, or other parts of training files: choose one with section='PATH', or take "
                "parts of one with `unival-merge graft`",
                (),
            )
            return


def prefixed(facts: Facts) -> Iterator[Seen]:
    """All names of one are another's with a component more: a wrapper was saved with the model."""
    for index, spec in enumerate(facts.specs):
        for other, plain in zip(facts.labels, facts.specs, strict=True):
            if plain is spec or spec.keys() == plain.keys():
                continue
            label = facts.labels[index]
            prefix = _prefix(list(spec), plain)
            if prefix:
                text = f"every name of {label} begins with {prefix!r} ({next(iter(spec))}), those of {other} do not"
                yield Seen(text, f"pass rename={f'{label}:{prefix}='!r}", tuple(spec))
                return
            inner = _inner(spec, plain)
            if inner:
                shown = next(name for name in spec if inner in name)
                text = f"names of {label} hold {inner!r} ({shown}), those of {other} do not"
                yield Seen(text, f"pass rename={f'{label}:*{inner}*=**'!r}", tuple(n for n in spec if inner in n))
                return


def _prefix(names: Sequence[str], plain: Description) -> str:
    """What all names begin with and most are names of `plain` without, "" where there is no such thing."""
    for prefix in prefixes(names[0]) if names else []:
        if not all(name.startswith(prefix) for name in names):
            return ""
        if 2 * sum(name.removeprefix(prefix) in plain for name in names) > max(len(names), len(plain)):
            return prefix
    return ""


def _inner(spec: Description, plain: Description) -> str:
    """The wrapper's component without which most names are names of `plain`, "" where there is none."""
    for part in WRAPPERS:
        held = [name for name in spec if part in name]
        found = sum(name.replace(part, "") in plain for name in held)
        if 2 * found > len(held) and not any(name in plain for name in held):
            return part
    return ""
