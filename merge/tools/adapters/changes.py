"""What finetuning changed, module by module, and how a LoRA adapter can hold it so that peft loads it."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from merge.checkpoint.formats.format import Specs
from merge.checkpoint.open import specs as specs_of
from merge.checkpoint.source import StateDict, whole
from merge.errors import MergeError
from merge.methods.matrices import decomposed, one_thread
from merge.plan.policy import matches
from merge.plan.units import Unit

# Modules whose matrices are tables, by the last word of their names (a number counts with the word before it): factors
# in a linear layer's form would not be loaded.
_TABLE = re.compile(
    r"(.*\.)?(\w*emb(ed\w*)?|wte|wpe|shared|\w*pos_table\w*|\w*rel_pos\w*|relative_attention_bias|"
    r"\w*position_bias\w*|\w*lookup\w*|\w*codebook\w*)(\.\d+)?"
)
_NO_TOKENS = re.compile(r"pos|type|segment|rel|wpe")
# What peft puts into a module that it factors.
_INNER = ("base_layer", "lora_A.default", "lora_B.default", "lora_dropout.default")
_HEAD = re.compile(r"(.*[./])?(lm_head|embed_out|output_projection|output|head|decoder)\.weight")


@dataclass
class Changes:
    """Where the changes of a model go.

    Attributes:
        factored: linear modules, with whether their weight lies as [inputs, outputs].
        biases: those of them whose bias changed.
        whole: modules that are saved whole, with the tensor that is the reason.
        rows: embeddings whose changed rows are saved.
    """

    factored: dict[str, bool] = field(default_factory=dict[str, bool])
    biases: set[str] = field(default_factory=set[str])
    whole: dict[str, str] = field(default_factory=dict[str, str])
    rows: set[str] = field(default_factory=set[str])

    @property
    def transposed(self) -> bool:
        """Whether the factored modules are stored transposed: all of them, as peft's one setting says."""
        return any(self.factored.values())


def sorted_out(units: Sequence[Unit], inputs: tuple[StateDict, StateDict], wholes: Sequence[str]) -> Changes:
    """Say where every change between two models, base and tuned, goes; `wholes` are globs of tensors saved whole.

    Units are those of the changes that are asked for, the models have all their tensors.

    Raises MergeError for a change that peft's format has no place for.
    """
    base, tuned = inputs
    specs = specs_of(base)
    found, turned, asked = Changes(), _Turned(specs), {name for unit in units for name in unit.names}
    for unit in units:
        name = next((name for name in unit.names if _is_table(name)), unit.name)
        module, _, leaf = name.rpartition(".")
        if unit.kind == "copy" or torch.equal(whole(base, name), whole(tuned, name)):
            continue
        if not module:
            raise MergeError(
                f"{name} has changed and belongs to no module, so that peft cannot save it; drop={name!r} leaves its "
                "change out"
            )
        linear = f"{module}.weight" in asked and _is_linear(f"{module}.weight", specs)
        if linear and leaf in ("weight", "bias") and not matches(name, wholes):
            found.factored[module] = turned(module)
            found.biases |= {module} if leaf == "bias" else set()
        elif _is_table(name) and (len(unit.names) > 1 or _may_be_tied(name, specs)) and not matches(name, wholes):
            found.rows.add(module)
        else:
            found.whole.setdefault(module, name)
    _settle(found, specs)
    return found


def _settle(found: Changes, specs: Specs) -> None:
    """Move to the whole modules what one adapter cannot factor beside the others."""
    if found.transposed:
        _save_whole(found, [module for module, turned in found.factored.items() if not turned])
    # peft gives all factors a bias or none, and merges none into a module without: the smaller part is saved whole.
    lacking = [module for module in found.factored if f"{module}.bias" not in specs]
    if found.biases and lacking:
        sizes = [sum(math.prod(specs[f"{one}.weight"].shape) for one in part) for part in (found.biases, lacking)]
        _save_whole(found, sorted(found.biases) if sizes[0] <= sizes[1] else lacking)
    # peft saves whole what ends as such a name, and factors nothing that has it as a part.
    for module in list(found.factored):
        for one in list(found.whole):
            if module.endswith(one) or re.match(rf"(^|.*\.){re.escape(one)}($|\..*)", module):
                _save_whole(found, [module])
                break
            if any(f"{module}.{inner}".endswith(one) for inner in _INNER):
                raise MergeError(
                    f"{found.whole[one]} has changed, and peft cannot save the module {one!r} whole: layers of its own "
                    f"end so too; drop='{one}.*' leaves the change out"
                )
    for module in list(found.factored):
        if any(module.startswith(f"{one}.") for one in found.whole):
            _save_whole(found, [module])
    for module in list(found.whole):  # one within another is part of it
        if any(module.startswith(f"{one}.") for one in found.whole):
            del found.whole[module]


def _save_whole(found: Changes, modules: Sequence[str]) -> None:
    for module in modules:
        found.whole.setdefault(module, f"{module}.weight")
        found.factored.pop(module, None)
        found.biases.discard(module)


def _is_linear(name: str, specs: Specs) -> bool:
    return len(specs[name].shape) == 2 and not _is_table(name)


def _is_table(name: str) -> bool:
    return name.endswith(".weight") and _TABLE.fullmatch(name.removesuffix(".weight").lower()) is not None


def _may_be_tied(name: str, specs: Specs) -> bool:
    """Whether a table of tokens has no head beside it, so that a model may use it as its head."""
    if _HEAD.fullmatch(name) or _NO_TOKENS.search(name.lower().split(".")[-2]):
        return False
    heads = [other for other in specs if other != name and _HEAD.fullmatch(other)]
    return not any(specs[other].shape == specs[name].shape for other in heads)


class _Turned:
    """Tells whether a linear module's weight lies as [inputs, outputs], as in GPT-2: its bias has the outputs.

    Of a square one those with the same last name tell, then all others.
    """

    def __init__(self, specs: Specs):
        self._specs = specs
        self._known: dict[str, bool] = {}
        for name, spec in specs.items():
            module, _, leaf = name.rpartition(".")
            outputs = self._outputs(module)
            if leaf == "weight" and _is_linear(name, specs) and outputs and spec.shape[0] != spec.shape[1]:
                self._known[module] = spec.shape[1] == outputs

    def __call__(self, module: str) -> bool:
        if module in self._known or not self._outputs(module):
            return self._known.get(module, False)
        last = module.rpartition(".")[2]
        alike = {turned for other, turned in self._known.items() if other.rpartition(".")[2] == last}
        seen = alike or set(self._known.values())
        if len(seen) > 1:
            raise MergeError(
                f"{module}.weight is square, and other modules are stored both ways: whole='{module}.*' saves it whole"
            )
        return seen == {True}

    def _outputs(self, module: str) -> int:
        spec = self._specs.get(f"{module}.bias")
        return spec.shape[0] if spec is not None and len(spec.shape) == 1 else 0


def approximated(change: Tensor, rank: int | None, energy: float, floor: float) -> tuple[Tensor, Tensor, float]:
    """Give factors A [r, inputs] and B [outputs, r] of a change in float64, and the share of energy they leave out.

    The rank is the least that keeps `energy`, a share of the squared singular values, at most `rank`; directions whose
    singular values are below `floor`, or below what float64 tells from zero, are left out. B and A share each singular
    value's root. The best approximation of that rank (Eckart and Young 1936).
    """
    least = max(change.shape) * torch.finfo(change.dtype).eps
    with one_thread():
        u, values, v = decomposed(change, min(change.shape), least, floor)
        total = change.square().sum().item()
    sums = values.square().cumsum(0)
    count = len(values) if energy == 1 else min(len(values), int((sums < energy * total).sum()) + 1)
    count = count if rank is None else min(count, rank)
    left = 1 - sums[count - 1].item() / total if count else float(total > 0)
    root = values[:count].sqrt()
    return (v[:, :count] * root).T, u[:, :count] * root, max(left, 0.0)


def subtree(module: str, names: Collection[str]) -> list[str]:
    """Give the names of a module's tensors, with those of modules in it."""
    return [name for name in names if name.startswith(f"{module}.")]


def rows_changed(before: Tensor, after: Tensor) -> list[int]:
    """Give the rows in which two tables differ."""
    return [int(row) for row in torch.nonzero((before != after).any(1)).flatten()]
