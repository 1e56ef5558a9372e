"""The built-in study: UnIVAL at two setups, pocket and base.

>>> home = unival.Pocket(Path("pocket-full"))  # doctest: +SKIP
>>> unival.make_experts(home.with_seed(1), [unival.Expert("vqa", "vqa", "ratatouille")])  # doctest: +SKIP

Names are loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.study.points import Expert
    from experiments.unival.pocket.cache import user_cache
    from experiments.unival.pocket.experts import make_experts
    from experiments.unival.pocket.kinds import KINDS
    from experiments.unival.pocket.pipeline import Pocket
    from experiments.unival.studies import STUDIES, Choice

_HOME = {
    "Choice": "unival.studies",
    "Expert": "study.points",
    "KINDS": "unival.pocket.kinds",
    "Pocket": "unival.pocket.pipeline",
    "STUDIES": "unival.studies",
    "make_experts": "unival.pocket.experts",
    "user_cache": "unival.pocket.cache",
}

__all__ = ["KINDS", "STUDIES", "Choice", "Expert", "Pocket", "make_experts", "user_cache"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'experiments.unival' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"experiments.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
