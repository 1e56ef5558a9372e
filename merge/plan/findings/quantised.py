"""Checks of tensors that are codes: of quantised weights with scales beside them, of dtypes without arithmetic."""

from __future__ import annotations

import re
from collections.abc import Iterator

from merge.checkpoint.formats.elements import Element
from merge.checkpoint.formats.tensors import Spec, TensorEntry
from merge.checkpoint.scaled import left_over, pairs_of
from merge.plan.findings.facts import Description, Facts
from merge.plan.findings.indices import INDEX
from merge.plan.findings.kinds import Seen, counted, listed, tally

# Last components that belong to codes whatever their dtype: GPTQ and AWQ, bitsandbytes, compressed-tensors, HQQ, EXL2,
# QuIP#, torchao, torch.ao and quanto write them.
MARKERS = re.compile(
    r"qweight|qzeros|g_idx|SCB|absmax|nested_absmax|quant_map|nested_quant_map|bitsandbytes__\w+|quant_state|weight_packed|"
    r"W_q|q_weight|q_scale|Qidxs|trellis|_packed_params|q?data|wscales|scaled_fp8|weight_format"
)
SCALE = re.compile(r"scale|zero|absmax|amax|SCB|quant|zp$|s_inv|wscales")
_TABLES = re.compile(rf"{INDEX.pattern}|.*mask.*|bias")
# In a name with a colon or a dot torchao keeps the parts of one tensor; "data" alone is no evidence.
_PARTS = re.compile(r".*[:.](_?q?data|qdata)")
CODES = ("int8", "uint8")
HINTS = (
    *("scale", "zero", "max", "SCB", "quant", "qweight", "packed", "W_q", "q_", "Qidxs", "trellis", "qdata", "_data"),
    *("zp", "s_inv"),
)
INTEGER_CODES = ("int8", "uint8", "int32", "int16", "uint32", "uint16")
BEFORE = (
    "merge the checkpoints from before quantisation and quantise the result, or write each unquantised with its tool"
)


def without_arithmetic(spec: Spec | TensorEntry) -> bool:
    """Tell whether nothing can be computed with a dtype: 4-bit numbers, bare exponents."""
    return spec.element.bits < 8 or spec.element.name.startswith(("float4_", "float6_", "float8_e8m0"))


def is_code(spec: Spec | TensorEntry) -> bool:
    """Tell whether a tensor may be codes: 8-bit floats or less, or packed integers, of one axis at least."""
    return may_be_code(spec.element) and len(spec.shape) > 0


def may_be_code(element: Element) -> bool:
    """Tell whether a dtype is one of codes: 8-bit floats or less, packed integers."""
    return element.bits <= 8 if element.is_floating_point else element.name in INTEGER_CODES


def codes_of(facts: Facts) -> list[dict[str, str]]:
    """For every checkpoint its codes, each with the scale or marker that it is known by."""
    if not facts.holds(*HINTS) or not any(map(may_be_code, facts.elements)):
        return [{} for _ in facts.specs]
    return [scaled_codes(spec) for spec in facts.specs]


def scaled_codes(spec: Description) -> dict[str, str]:
    """Give names of codes, and of the scale or marker that each is known by."""
    names = {name: name.rpartition(".")[2].rpartition(":")[2] for name in spec}
    found = {name: name for name, leaf in names.items() if MARKERS.fullmatch(leaf) and _is_marker(name, leaf, spec)}
    codes = [name for name in spec if is_code(spec[name])]
    if not codes:
        return found
    scales: dict[str, str] = {}
    for name, leaf in names.items():
        if SCALE.search(leaf) and spec[name].element.name not in ("int32", "int64"):
            parent = re.split(r"[:.](?=[^:.]*$)", name)[0] if leaf != name else ""
            for place in (parent, parent.rpartition(".")[0] if "." in parent else parent):
                scales.setdefault(place, name)
    for name in codes:
        module = name.rpartition(".")[0]
        scale = scales.get(name) or scales.get(module)
        if scale is not None and not scale.startswith(name) and _is_sound(names[name], spec[name]):
            continue
        if scale is not None and scale != name and not SCALE.search(names[name]):
            found.setdefault(name, scale)
        elif name.endswith("_blocks") and name.removesuffix("_blocks") + "_scales" in spec:
            found.setdefault(name, name.removesuffix("_blocks") + "_scales")
    return found


def _is_sound(leaf: str, spec: Spec | TensorEntry) -> bool:
    """Whether integers are nothing that a scale beside them is for: counters, tables of places, masks."""
    return not spec.element.is_floating_point and (len(spec.shape) < 2 or _TABLES.fullmatch(leaf) is not None)


def _is_marker(name: str, leaf: str, spec: Description) -> bool:
    if leaf in ("data", "_data", "qdata"):
        return bool(_PARTS.fullmatch(name)) and is_code(spec[name])
    return leaf != "g_idx" or not spec[name].element.is_floating_point


def scaled_weights(facts: Facts) -> Iterator[Seen]:
    """Codes whose scales lie beside them: averaged apart they mean nothing."""
    if not any(map(may_be_code, facts.elements)):
        return
    merged = set(facts.merged)
    sidecars = facts.sidecars or [None] * len(facts.labels)
    for label, spec, beside, codes in zip(facts.labels, facts.specs, sidecars, codes_of(facts), strict=True):
        found = {name: scale for name, scale in codes.items() if name in merged or scale in merged}
        said = beside.config.get("quantization_config") if beside is not None else None
        if not found and said:
            found = {
                name: "quantization_config in config.json" for name in merged if name in spec and is_code(spec[name])
            }
        if not found:
            continue
        name, scale = next(iter(found.items()))
        kinds = tally({each: spec[each].element.name for each in found})
        beside_it = f"with {scale}" if scale != name else "with its scales"
        text = f"{label} has quantised weights ({kinds}): {name} means something only {beside_it}"
        known = pairs_of(spec)
        solved = {*known, *known.values(), *left_over(spec, known)}
        ways = (
            f"multiply weights and scales first with dequantize=True, or {BEFORE}" if solved >= set(found) else BEFORE
        )
        yield Seen(text, ways, tuple(dict.fromkeys((*found, *(s for s in found.values() if s in spec)))))
        return


def no_arithmetic(facts: Facts) -> Iterator[Seen]:
    """Dtypes that are carried and not computed with."""
    if not any(element.bits < 8 or "e8m0" in element.name for element in facts.elements):
        return
    names = [n for n in facts.merged if any(n in spec and without_arithmetic(spec[n]) for spec in facts.specs)]
    if names:
        spec = next(s[names[0]] for s in facts.specs if names[0] in s and without_arithmetic(s[names[0]]))
        yield Seen(
            f"{listed(names)} {'is' if len(names) == 1 else 'are'} {spec.element.name}, which has no arithmetic",
            BEFORE,
            tuple(names),
        )


def eight_bit(facts: Facts) -> Iterator[Seen]:
    """8-bit floats without scales: they are merged, and rounded to 3 bits or 2."""
    if not any(element.is_floating_point and element.bits == 8 for element in facts.elements):
        return
    scaled = {name for codes in codes_of(facts) for name in codes}
    names = [
        name
        for name in facts.merged
        if name not in scaled
        and facts.first_of(name).element.is_floating_point
        and facts.first_of(name).element.bits == 8
    ]
    if names and not without_arithmetic(facts.first_of(names[0])):
        yield Seen(
            f"{counted(len(names), 'tensor')} of {facts.first_of(names[0]).element.name}: {listed(names)}",
            "finetuning below their last digit is lost: merge the 16-bit checkpoints if there are any, or widen the "
            "result with dtype='bfloat16'",
            tuple(names),
        )
