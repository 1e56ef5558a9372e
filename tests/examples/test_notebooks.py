"""The notebooks are what their scripts say, and hold no outputs; `make notebooks` makes and runs them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from experiments.pages.figures.style import Figure
from tests import ROOT

SCRIPTS = sorted((ROOT / "examples" / "notebooks").glob("*.py"))


def cells(script: Path) -> list[tuple[str, str]]:
    """The cells of a script: Markdown without its comment signs, or code."""
    parts = re.split(r"(?m)^# %%(.*)\n", script.read_text(encoding="utf-8"))[1:]
    found = list[tuple[str, str]]()
    for mark, text in zip(parts[::2], parts[1::2], strict=True):
        if "[markdown]" in mark:
            text = re.sub(r"(?m)^# ?", "", text)
        found.append(("markdown" if "[markdown]" in mark else "code", text.strip()))
    return found


def test_there_are_three() -> None:
    assert [script.stem for script in SCRIPTS] == ["merge_and_look", "pocket_results", "study_of_your_own"]
    assert {path.stem for path in (ROOT / "examples").glob("*.ipynb")} == {script.stem for script in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_notebook_is_its_script(script: Path) -> None:
    notebook = json.loads((ROOT / "examples" / f"{script.stem}.ipynb").read_text(encoding="utf-8"))
    made = [(cell["cell_type"], "".join(cell["source"]).strip()) for cell in notebook["cells"]]
    assert made == cells(script), "run `make notebooks`"
    assert all(cell.get("outputs", []) == [] for cell in notebook["cells"])


def test_figures_are_shown_without_pyplot() -> None:
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([0, 1])
    assert figure._repr_png_().startswith(b"\x89PNG")
