"""Where the experts of a study lie: files, as processes and later sessions need them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.grid.escapes import file_stem
from experiments.study.points import PRETRAINED
from experiments.study.study import Study, is_by_seed
from merge import Checkpoint, Input, digest, save_checkpoint

FOLDER = "experts"


def settled(study: Study, folder: Path) -> Study:
    """Return the study with an `Input` for every expert; weights in memory are written into `folder/experts`, once."""
    experts = {name: _settled(given, name, folder) for name, given in study.experts.items()}
    start = None if study.pretrained is None else _settled(study.pretrained, PRETRAINED, folder)
    return replace(study, experts=experts, pretrained=start)


def _settled(given: Any, name: str, folder: Path) -> Any:
    if is_by_seed(given):
        return {seed: _settled(one, name, folder) for seed, one in given.items()}
    if isinstance(given, Input):
        return given
    if isinstance(given, Checkpoint):
        return Input(name, given.path, given.section, rename=given.rename)
    if isinstance(given, (str, Path)):
        return Input(name, Path(given))
    code = digest(given).partition(":")[2]
    target = folder / FOLDER / f"{file_stem(name, code[:16])}.safetensors"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(given, target)
    return Input(name, target)
