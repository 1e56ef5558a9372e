"""The page that lists every function from a command to the arithmetic is walked, each of its ways by a real merge."""

from __future__ import annotations

import re
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import merge
from merge import METHODS
from merge.methods import linear
from tests import ROOT
from tests.merge.shell import done

Hop = tuple[str, str]
TEXT = (ROOT / "docs" / "where-is-what.md").read_text(encoding="utf-8")
ENDS = {"w": torch.zeros(3)}, {"w": torch.ones(3)}


def listed(title: str) -> list[Hop]:
    """The functions that the page lists under a line that begins so."""
    part = TEXT[TEXT.index(f"\n{title}") :].split("\n\n")[1]
    return [(file, name) for file, name in re.findall(r"^\d\. `(\S+): (\w+)`$", part, re.MULTILINE)]


def stack(frame: FrameType | None) -> list[Hop]:
    """The functions of merge on a stack, outermost first."""
    found: list[Hop] = []
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT / "merge") and not frame.f_code.co_name.startswith("<"):
            found.insert(0, (str(path.relative_to(ROOT)), frame.f_code.co_name))
        frame = frame.f_back
    return found


@pytest.fixture
def walked(monkeypatch: pytest.MonkeyPatch) -> list[Hop]:
    """Filled when a merge calls `interpolate`'s function: all functions of merge on the way there."""
    hops: list[Hop] = []
    main = threading.main_thread().ident

    def spy(tensors: Any, **parameters: Any) -> Tensor:
        if not hops:
            code = linear.interpolate.__code__
            if threading.get_ident() != main:  # a worker: what waits for it comes first
                hops.extend(stack(sys._current_frames()[main]))
            hops.extend([*stack(sys._getframe(1)), (str(Path(code.co_filename).relative_to(ROOT)), code.co_name)])
        return linear.interpolate(tensors, **parameters)

    monkeypatch.setitem(METHODS, "interpolate", replace(METHODS["interpolate"], code=spy))
    return hops


def test_from_a_command_to_a_file(walked: list[Hop], tmp_path: Path) -> None:
    paths = [merge.save_checkpoint(end, tmp_path / f"{name}.pt") for name, end in zip("ab", ENDS, strict=True)]
    done("interpolate", *paths, "--ratio", "0.5", "-o", tmp_path / "m.pt")
    wanted = listed("A file")
    assert walked[walked.index(wanted[0]) :] == wanted
    assert len(wanted) <= 7
    assert len({file for file, _ in wanted}) <= 4


def test_from_a_public_function_to_memory(walked: list[Hop]) -> None:
    next(merge.sweep(*ENDS, [0.5]))
    assert walked == listed("In memory")
    assert len(walked) <= 5
    walked.clear()
    merge.interpolate(*ENDS, 0.5)
    assert walked == listed("In memory")[1:]


def test_from_a_path_to_a_live_model(walked: list[Hop]) -> None:
    model = nn.ParameterDict({"w": torch.zeros(3, dtype=torch.float64)})
    merge.LinearPath(model, *ENDS).set(0.5)
    assert walked == listed("A live model")
    assert len(walked) <= 5
    walked.clear()
    model = nn.ParameterDict({"w": torch.zeros(3)})
    merge.LinearPath(model, *ENDS).set(0.5)
    assert walked == [*listed("A live model")[:3], listed("A live model")[-1]]


def test_every_place_that_the_page_names_is_there() -> None:
    places = {word.rstrip("/") for word in re.findall(r"`([a-z_]+/[a-z_/.-]*)", TEXT)}
    assert places
    assert not [place for place in places if not (ROOT / place).exists()]
