"""What training files note of the model and of the run, as plain data."""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

from merge.checkpoint.formats.pickle.values import Opaque

# Entries of training files that describe the model: fairseq, Lightning, whisper, nanoGPT, nnU-Net, detectors, ...
EMBEDDED = re.compile(
    r"cfg|config|args|opt|dims|hparams|hyper_parameters|(model|init|arch|network)_?(args|config|cfg|kwargs)"
)
_DEPTH = 12  # levels of what a training file notes of its model, two of OmegaConf's for one of the user's
_ITEMS = 10_000


def noted(tree: object) -> dict[str, Mapping[str, Any]]:
    """Give the entries of a training file that describe the model, by their names; none of what is no dictionary."""
    entries = cast("dict[Any, Any]", tree) if isinstance(tree, dict) else {}
    found = {key: plain(value) for key, value in entries.items() if isinstance(key, str) and EMBEDDED.fullmatch(key)}
    return {key: value for key, value in found.items() if isinstance(value, dict) and value}


def plain(value: Any) -> Any:
    """What a pickle holds as plain data: namespaces and OmegaConf's containers as dictionaries, other objects None.

    At most `_ITEMS` items are looked at, since a pickle of a few bytes may share one list a million times over.
    """
    return _plain(value, 0, itertools.count())


def _plain(value: Any, depth: int, seen: Iterator[int]) -> Any:
    if depth > _DEPTH or next(seen) >= _ITEMS:
        return None
    if isinstance(value, Opaque):
        state = value.attributes
        inner = next((state[key] for key in ("_content", "_val") if key in state), state or dict(value.items))
        return _plain(inner, depth + 1, seen)
    if isinstance(value, dict):
        items = itertools.islice(cast("dict[Any, Any]", value).items(), _ITEMS)
        return {key: _plain(item, depth + 1, seen) for key, item in items if isinstance(key, (str, int))}
    if isinstance(value, (list, tuple)):
        return [_plain(item, depth + 1, seen) for item in value[:256]]
    return value if isinstance(value, (str, int, float, bool, type(None))) else None
