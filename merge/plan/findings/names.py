"""Checks of names: factors of adapters, wrappers' prefixes, models that share nothing, placeholders."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from merge.plan.findings.facts import Facts
from merge.plan.findings.kinds import Seen, counted, listed, prefixes

# What adapters are made of, by the component that tells: peft's, kohya's and LyCORIS's, diffusers' names.
LOW_RANK = re.compile(
    r"(?:^|[._])(lora_(?:[ABEab]|embedding_A|embedding_B|magnitude_vector|up|down|mid)|lora\.(?:up|down))(?:\.|$)"
)
OTHER = re.compile(
    r"(?:^|\.)(hada_(?:w1|w2|t1|t2)(?:_[ab])?|lokr_(?:w1|w2|t1|t2)(?:_[ab])?|ia3_l|dora_scale|oft_(?:r|R|s|blocks|diag)|"
    r"boft_[RSs]|vera_(?:A|B|lambda_[bd])|(?:fourierft|waveft)_spectrum|hra_u|(?:bone|miss)_block|c3a_kernel|shira_weight|"
    r"(?:randlora|vblora|delora|gralora)_\w+|road_(?:theta|alpha)|prompt_embeddings|adaption_(?:prompt|gate)|"
    r"lora_linear_layer\.(?:up|down))(?:\.|$)"
)
# Parts of such names: where none is found no name is looked at.
HINTS = (
    *("lora", "hada_", "lokr_", "ia3_l", "dora_", "oft_", "vera_", "ft_spectrum", "hra_u", "bone_b", "miss_b", "c3a_"),
    *("shira_", "road_", "prompt_emb", "adaption_"),
)
FEW = 3  # names from which on another prefix is no coincidence
MANY = 4  # empty tensors in all inputs, from which on nobody meant them
# Wrappers that put a component into names: DataParallel, torch.compile, FSDP, activation checkpointing.
WRAPPERS = ("_orig_mod.", "module.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
# Other ends of the same tensors' names: of torch's two weight norms, of TensorFlow's LayerNorm.
SPELLINGS = {
    ".parametrizations.weight.original0": ".weight_g",
    ".parametrizations.weight.original1": ".weight_v",
    ".gamma": ".weight",
    ".beta": ".bias",
}


def adapter_factors(facts: Facts) -> Iterator[Seen]:
    """Factors whose product is the change: averaged apart they give another change."""
    if not facts.holds(*HINTS) and not any(item.peft_type for item in facts.sidecars):
        return
    for index, (label, spec) in enumerate(zip(facts.labels, facts.specs, strict=True)):
        low = [name for name in spec if LOW_RANK.search(name)]
        other = [name for name in spec if OTHER.search(name)]
        peft = facts.sidecars[index].peft_type if facts.sidecars else ""
        found = [name for name in (low or other or (spec if peft else ())) if name not in facts.decided]
        if not found:
            continue
        kind = "LoRA" if peft == "LORA" or (low and not peft) else peft
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
    """Empty tensors where others have weights, that layers call weights, or nearly all: DeepSpeed's stand-ins."""
    for label, spec in zip(facts.labels, facts.specs, strict=True):
        empty = [name for name, item in spec.items() if 0 in item.shape and item.element.is_floating_point]
        empty = [name for name in empty if name not in facts.decided]
        if not empty:
            continue
        floating = sum(1 for item in spec.values() if item.element.is_floating_point)
        elsewhere = [n for n in empty if any(n in other and 0 not in other[n].shape for other in facts.specs)]
        layers = [n for n in empty if spec[n].shape == (0,) and n.rpartition(".")[2] in ("weight", "bias")]
        found = elsewhere or layers or (empty if 2 * len(empty) > floating and len(empty) >= MANY else [])
        if found:
            yield Seen(
                f"{label} has {counted(len(found), 'tensor')} without an element: {listed(found)}",
                "DeepSpeed's ZeRO-3 leaves such placeholders: gather the weights with its zero_to_fp32.py, or train "
                "with stage3_gather_16bit_weights_on_model_save",
                tuple(found),
            )
            return


def nothing_shared(facts: Facts) -> Iterator[Seen]:
    """Give a checkpoint that shares no name with any other: whatever is missing, this is no merge."""
    if facts.same_names or not all(facts.specs) or not facts.wanted:
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
    """Give names of one that are another's with other components in front, a wrapper's inside, or another spelling."""
    if facts.same_names:
        return
    named = [[name for name in spec if name not in facts.decided] for spec in facts.specs]
    known = [set(names) for names in named]
    pairs = [(one, two) for one, two in itertools.permutations(range(len(named)), 2) if known[one] - known[two]]
    for one, two in pairs:
        ends = {end: other for end, other in SPELLINGS.items() if _respelled(known[one], known[two], end, other)}
        if ends:
            label, other = facts.labels[one], facts.labels[two]
            text = f"names of {label} end in {', '.join(ends)} where those of {other} end in {', '.join(ends.values())}"
            held = [name for name in named[one] if name.endswith(tuple(ends))]
            yield Seen(text, _rename_advice(label, [f"*{end}=*{ends[end]}" for end in ends]), tuple(held))
            return
        part = _inner(named[one], known[two])
        if part:
            held = [name for name in named[one] if f".{part}" in f".{name}"]
            text = f"names of {facts.labels[one]} hold {part!r} ({held[0]}), those of {facts.labels[two]} do not"
            yield Seen(text, _rename_advice(facts.labels[one], _rules(part, held)), tuple(held))
            return
    found = [(*best, one, two) for one, two in pairs if (best := _best(named[one], named[two])) is not None]
    for prefix, instead, one, two in sorted(found, key=lambda each: (bool(each[1]), len(each[0]) + len(each[1])))[:1]:
        shown = next(name for name in named[one] if name.startswith(prefix))
        theirs = f"with {instead!r}" if instead else "do not"
        text = f"names of {facts.labels[one]} begin with {prefix!r} ({shown}), those of {facts.labels[two]} {theirs}"
        yield Seen(text, _rename_advice(facts.labels[one], [f"{prefix}={instead}"]), tuple(named[one]))


def _respelled(mine: set[str], theirs: set[str], end: str, other: str) -> bool:
    """Whether all names with an end are another's, which lacks them, with the other end, and none are so already."""
    held = {name for name in mine if name.endswith(end)}
    return bool(held) and held.isdisjoint(theirs) and {n.removesuffix(end) + other for n in held} <= theirs - mine


def _rename_advice(label: str, rules: Sequence[str]) -> str:
    named = [f"{label}:{rule}" for rule in rules]
    bare = repr(rules[0] if len(rules) == 1 else list(rules))
    return f"pass rename={(named[0] if len(named) == 1 else named)!r} (in Python merge.renamed({label}, {bare}))"


def _best(mine: Sequence[str], theirs: Sequence[str]) -> tuple[str, str] | None:
    """What most names begin with, and with what another's do instead: the shortest such pair, None where none is."""
    known = set(theirs)
    if 2 * sum(name in known for name in mine) > len(mine):
        return None
    pairs = [(prefix, instead) for prefix in _common_prefixes(mine) for instead in ("", *_common_prefixes(theirs))]
    for prefix, instead in sorted(pairs, key=lambda pair: (bool(pair[1]), len(pair[0]) + len(pair[1]))):
        found = sum(name.startswith(prefix) and instead + name.removeprefix(prefix) in known for name in mine)
        if prefix != instead and 2 * found > max(len(mine), len(theirs)) and (not instead or found >= FEW):
            return prefix, instead
    return None


def _common_prefixes(names: Sequence[str]) -> list[str]:
    """Components that more than half of the names begin with, at most four of them."""
    counts = Counter(prefix for name in names for prefix in prefixes(name)[:4])
    return [prefix for prefix, count in counts.items() if 2 * count > len(names)]


def _inner(mine: Sequence[str], theirs: Collection[str]) -> str:
    """The wrapper's component without which most names that hold it are another's, "" where there is none."""
    for part in WRAPPERS:
        held = [name for name in mine if f".{part}" in f".{name}"]
        found = sum(_without(part, name) in theirs for name in held)
        if 2 * found > len(held) and not any(name in theirs for name in held):
            return part
    return ""


def _without(part: str, name: str) -> str:
    return f".{name}".replace(f".{part}", ".").removeprefix(".")


def _rules(part: str, held: Sequence[str]) -> list[str]:
    """Rules of renaming that take a component out of names, as often as it occurs in one."""
    inside = max(f".{name}".count(f".{part}") - name.startswith(part) for name in held)
    first = [f"{part}="] if any(name.startswith(part) for name in held) else []
    return first + [f"*.{part}*=*.*"] * inside
