"""What a configuration says of a model's depth, edited to say what the result has: counts, and lists by layer."""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merge.errors import MergeError

# Keys that count the layers of a list.
COUNT = re.compile(
    r"num_hidden_layers|num_layers|n_layers?|(num_)?(encoder|decoder)_layers|num_(transformer_)?blocks|n_blocks|depth"
)
# Lists that may happen to be as long as there are layers, and say nothing of them.
_OTHER_LIST = re.compile(
    r"architectures|.*token_ids?|.*_token|(image|patch|kernel|window|input|output)_.*|.*_(mean|std|range|size)s?_?"
    r"|rope_\w+|mrope_section|(short|long)_factor|languages?|.*_dropout|out_features|stage_names|pruned_heads|keys_.*"
)
_LAYER_SIZES = re.compile(r"(intermediate|hidden|ffn|head|expert)\w*_sizes?")
# Lists of the numbers of layers that are of some kind.
_NUMBERS = re.compile(r"(\w+_)?layers?(_(ids?|idx|index(es)?|indices))?|(\w+_)?layers?_(ids?|idx|index(es)?|indices)")
# Keys that say by its number what a layer is: from the first number on, in turns of so many.
_FROM, _TURNS = (
    re.compile(r"first_k_dense_replace|max_window_layers|num_dense_layers|n_dense_layers|num_kv_shared_layers"),
    re.compile(
        r"sliding_window_pattern|full_attention_interval|attn_layer_(period|offset)|expert_layer_(period|offset)"
        r"|decoder_sparse_step|moe_layer_freq(uency)?|moe_layer_interval|interleave_moe_layer_step"
        r"|(cross|global)_attn_every_n_layers|no_rope_layer_interval|layer_group_size"
    ),
)
# Words of lists, and of the part of a configuration that describes them.
_SENSES = ("vision|visual|image|vit", "audio|speech|wav")


@dataclass(frozen=True)
class Depth:
    """A list of layers that was put together.

    Attributes:
        name: of the list, without the prefix of a part.
        others: names of the model's other lists.
        before: how many layers the first input has.
        origins: for each layer of the result the input that gives it, and its number there.
    """

    name: str
    others: Sequence[str]
    before: int
    origins: Sequence[tuple[int, int]]

    @property
    def moved(self) -> bool:
        """Whether some layer has another number than it had, or another count."""
        return [number for _, number in self.origins] != list(range(self.before))


def follow(config: dict[str, Any], others: Sequence[Mapping[str, Any]], depth: Depth, where: str) -> Iterator[str]:
    """Change a configuration to the result's layers; `others` are those of all inputs. Yields what was changed.

    Raises MergeError where it says another count than the weights have, or what layers are by a rule that the result's
    layers do not keep.
    """
    counted = False
    wrong = ""
    for path, place in _places(config):
        if not _describes(path, depth):
            continue
        for key, value in list(place.items()):
            if type(value) is int and COUNT.fullmatch(key) and _is_of(key, place, depth):
                counted |= value == depth.before
                wrong = wrong or ("" if value == depth.before else f"{'.'.join((*path, key))} {value}")
                if value == depth.before and len(depth.origins) != value:
                    place[key] = len(depth.origins)
                    yield f"{key} {len(depth.origins)}"
            elif (
                isinstance(value, list)
                and depth.moved
                and (new := _by_layer(key, value, path, others, depth)) is not None
            ):
                if new != value:
                    place[key] = new
                    yield f"{key} of {len(depth.origins)} layers"
            elif depth.moved and type(value) is int and "layer_types" not in place:
                changed = _rule(key, value, place, depth, where)
                if changed != value:
                    place[key] = changed
                    yield f"{key} {changed}"
    if wrong and not counted:
        raise MergeError(f"{where} says {wrong}, where the weights have {depth.before} layers: correct it there first")


def _places(config: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """A configuration and those of the models in it, each with its keys."""
    yield path, config
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _places(value, (*path, key))


def _describes(path: Sequence[str], depth: Depth) -> bool:
    """Whether a part of a configuration is that of the list's model: of images, of sound, or neither."""
    whole = "_".join(path)
    if not depth.others or "rope" in whole:
        return "rope" not in whole
    return all(bool(re.search(sense, whole)) == bool(re.search(sense, depth.name)) for sense in _SENSES)


def _is_of(key: str, place: Mapping[str, Any], depth: Depth) -> bool:
    """Whether a count is of this list where encoder and decoder have one each; a plain count is the encoder's there."""
    sides = [side for side in ("encoder", "decoder") if side in depth.name]
    both = any(other in name for name in depth.others for other in ("encoder", "decoder") if other not in sides)
    if len(sides) != 1 or not both:
        return True
    if "encoder" in key or "decoder" in key:
        return sides[0] in key
    split = any(COUNT.fullmatch(other) and "decoder" in other for other in place)
    return not split or sides[0] == "encoder"


def _by_layer(
    key: str, value: list[Any], path: Sequence[str], others: Sequence[Mapping[str, Any]], depth: Depth
) -> list[Any] | None:
    """A list with an entry for every layer, or of some layers' numbers, as the result has it; None for other lists."""
    if len(value) == depth.before and (_LAYER_SIZES.fullmatch(key) or not _OTHER_LIST.fullmatch(key)):
        found: list[Any] = []
        for index, number in depth.origins:
            theirs = _at(others[index], (*path, key))
            mine = theirs if isinstance(theirs, list) and number < len(theirs) else value
            if number >= len(mine):
                return None
            found.append(mine[number])
        return found
    if value and _NUMBERS.fullmatch(key) and all(type(item) is int for item in value):
        chosen = [_at(others[index], (*path, key)) for index, _ in depth.origins]
        return [
            at
            for at, ((_, number), theirs) in enumerate(zip(depth.origins, chosen, strict=True))
            if number in (theirs if isinstance(theirs, list) else value)
        ]
    return None


def _at(config: Mapping[str, Any], path: Sequence[str]) -> Any:
    found: Any = config
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _rule(key: str, value: int, place: Mapping[str, Any], depth: Depth, where: str) -> int:
    """A number that says what layers are by theirs, as the result has it. Raises MergeError where none says it."""
    numbers = [number for _, number in depth.origins]
    if key == "max_window_layers" and not place.get("use_sliding_window"):
        return value
    if _FROM.fullmatch(key):
        first = [number < value for number in numbers]
        if first == sorted(first, reverse=True):
            return sum(first) if any(first) and not all(first) else value
    elif (
        not _TURNS.fullmatch(key)
        or value <= 1
        or all(at % value == number % value for at, number in enumerate(numbers))
    ):
        return value
    raise MergeError(
        f"{where} says by numbers what layers are ({key} {value}), which the layers of the result do not keep: take "
        "others, or write layer_types into it"
    )
