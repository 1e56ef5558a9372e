"""What mergekit's recipes say of the vocabulary: `tokenizer_source`, and `tokenizer` with sources of single tokens."""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merge.checkpoint.hub import joined, located
from merge.errors import MergeError, nearest, shortened
from merge.recipe.mergekit_forms import model_path


def tokenizer_choices(
    data: Mapping[str, Any], folder: Path, labels: Mapping[str, str], base: str | None
) -> dict[str, Any]:
    """Give the choices of a `Policy` that a recipe's vocabulary means; none where it says none.

    `labels` name the inputs by the models' paths; `base` is the path of the base model. As in mergekit rows that are no
    token's go, and what stands in for a row is the base's, or else the mean of those that have it. Raises MergeError.
    """
    given, old = data.get("tokenizer"), data.get("tokenizer_source")
    if given is None and old is None:
        return {}
    if given is not None and old is not None:
        raise MergeError("tokenizer and tokenizer_source: a recipe has one of them")
    given = {"source": old} if given is None else given
    if not isinstance(given, Mapping):
        raise MergeError(f"tokenizer must be a mapping, as {{source: union}}, not {shortened(given)}")
    _check_keys(given, ("source", "tokens", "pad_to_multiple_of"), "tokenizer")
    pad = given.get("pad_to_multiple_of")
    if pad is not None and (type(pad) is not int or pad < 1):
        raise MergeError(f"tokenizer: pad_to_multiple_of must be a number of rows, not {shortened(pad)}")
    tokens = given.get("tokens") or {}
    if not isinstance(tokens, Mapping):
        raise MergeError(f"tokenizer: tokens must be a mapping from tokens to sources, not {shortened(tokens)}")
    return {
        "tokenizer": _source(given.get("source") or "union", folder, labels, base),
        "missing_rows": "mean" if base is None or base not in labels else f"from:{labels[base]}",
        "pad_to_multiple": pad or 1,
        "token_rows": {str(token): _rule(str(token), item, labels) for token, item in tokens.items()},
    }


def _source(source: Any, folder: Path, labels: Mapping[str, str], base: str | None) -> str:
    """Whose vocabulary is meant, in a policy's words."""
    if source == "base":
        source = next(iter(labels)) if base is None else base
    elif source == "union":
        if base is not None and base not in labels:
            raise MergeError(
                f"tokenizer: a union begins with the tokens of the base model {shortened(base)}, which takes no part "
                "in this merge: name it among the models, or choose one model's vocabulary"
            )
        return "union"
    path = model_path(source)
    if path in labels:
        return labels[path]
    place = located(joined(folder, path))
    if not os.path.lexists(place):
        raise MergeError(f"tokenizer: source {shortened(path)} is neither union nor base, nor a model")
    return str(place)


def _rule(token: str, item: Any, labels: Mapping[str, str]) -> str:
    """The source of one token, as `Policy.token_rows` has it."""
    where = f"tokenizer: the token {shortened(token)}"
    if not isinstance(item, Mapping) or item.get("source") is None:
        raise MergeError(f"{where} needs a source")
    _check_keys(item, ("source", "force"), where)
    always = "always " if item.get("force") else ""
    source = item["source"]
    if not isinstance(source, Mapping):
        return always + _label(source, labels, where)
    kind = source.get("kind", "model_token" if "token" in source or "token_id" in source else "model")
    if kind == "zero":
        return f"{always}zero"
    if kind != "model_token":
        return always + _label(source, labels, where)
    _check_keys(source, ("kind", "model", "token", "token_id"), where)
    label, named, row = _label(source.get("model"), labels, where), source.get("token"), source.get("token_id")
    if (named is None) == (row is None) or type(row) not in (int, type(None)):
        raise MergeError(f"{where}: its source needs a token or a token_id, one of the two")
    return f"{always}{label}#{row}" if named is None else f"{always}{label}:{named}"


def _label(model: Any, labels: Mapping[str, str], where: str) -> str:
    path = model_path(model)
    if path not in labels:
        raise MergeError(f"{where}: {shortened(path)} is no model of the recipe{nearest(path, labels)}")
    return labels[path]


def _check_keys(given: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in given:
        if key not in known:
            raise MergeError(f"{where} has no key {shortened(key)}{nearest(str(key), known)}")
