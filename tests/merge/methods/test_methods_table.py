"""Every entry of `METHODS` is whole, or what it lacks is named; the documented method of one's own runs everywhere."""

from __future__ import annotations

import html
import importlib.util
import inspect
import json
import math
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import merge
from merge.commands import main
from merge.methods import METHODS, Method
from tests import ROOT
from tests.merge.methods.test_methods import VALUES
from tests.merge.ways import merged_every_way

TIMINGS = ROOT / "benchmarks" / "results" / "methods.json"
PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
TEXTS = ("summary", "formula", "source", "edges", "group")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def rendered() -> str:
    return runpy.run_path(str(ROOT / "docs" / "write_methods.py"))["render"](PAGE)


def row(name: str, page: str) -> str:
    return next((line for line in page.splitlines() if line.startswith(f"| `{name}` |")), "")


def lacking(name: str, page: str) -> str:
    """What an entry lacks, as one sentence; empty if it is whole. `page` is the page as it should be."""
    method, timings = METHODS[name], json.loads(TIMINGS.read_text())["methods"]
    grid = {**method.grid, "ratio": ()}
    found = [f"no {text}" for text in TEXTS if not getattr(method, text) or getattr(method, text) == "other"]
    found += [f"no example of {key}" for key, p in method.parameters.items() if p.required and p.example is None]
    found += [
        f"no values of {key} worth trying" for key, p in method.parameters.items() if p.required and key not in grid
    ]
    if method.elementwise and "out" not in inspect.signature(method.function).parameters:
        found.append("it is elementwise, and its function takes no out")
    if name not in VALUES:
        found.append("no value test: add a row to VALUES in tests/merge/methods/test_methods.py")
    if name not in timings:
        where = TIMINGS.relative_to(ROOT)
        found.append(f"no timing in {where}: run python benchmarks/methods.py --only {name}")
    if row(name, PAGE) != row(name, page):
        found.append("docs/methods.md is not regenerated: run python docs/write_methods.py")
    return f"method {name!r}: {'; '.join(found)}" if found else ""


def test_every_method_is_whole() -> None:
    page = rendered()
    assert [text for text in (lacking(name, page) for name in METHODS) if text] == []
    assert page == PAGE, "docs/methods.md is not regenerated: run python docs/write_methods.py"


def test_what_an_added_method_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Method(lambda tensors, *, name: tensors[0], "The first.", "A", "an example", edges="none", group="examples")
    monkeypatch.setitem(METHODS, "midpoint", entry)
    page = rendered()
    assert lacking("midpoint", page) == (
        "method 'midpoint': no value test: add a row to VALUES in tests/merge/methods/test_methods.py; "
        "no timing in benchmarks/results/methods.json: run python benchmarks/methods.py --only midpoint; "
        "docs/methods.md is not regenerated: run python docs/write_methods.py"
    )
    assert " not in mergekit's recordings | - | an example |" in row("midpoint", page)


def test_values_worth_trying_are_few_and_allowed() -> None:
    for name, method in METHODS.items():
        assert math.prod(map(len, method.grid.values())) <= 6, name
        for key, values in method.grid.items():
            item = method.parameters[key]
            assert all(
                value in item.words if isinstance(value, str) else item.low <= value <= item.high for value in values
            )


def test_summaries_are_sentences_that_fit_a_line() -> None:
    for name, method in METHODS.items():
        assert re.fullmatch(r"[A-Z].*[^.]\.", method.summary), name
        assert len(method.summary) <= 100, name


def test_parameters_tell_their_defaults_and_ranges() -> None:
    told = {key: (item.usual, item.range) for key, item in METHODS["della"].parameters.items()}
    assert told["density"] == ("required", "0 to 1")
    assert told["seed"] == ("0", "whole, any")
    assert told["rescale"] == ("true", "true, false")
    assert METHODS["average"].parameters["weights"].usual == "equal"
    assert METHODS["average"].parameters["weights"].range == "0 to 1, sum 1"
    assert [METHODS[name].needs for name in ("slerp", "ties", "nearswap")] == ["2", "base and 1 or more", "base and 1"]


# -- a method of one's own -------------------------------------------------------------------------------------------


def from_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Method:
    """The file of docs/methods.md, imported, and its line, evaluated as part of `METHODS`."""
    file, line = re.findall(r"```python\n(.*?)```", PAGE.split("## A method of your own")[1], re.DOTALL)[:2]
    path = folder / "middle.py"
    path.write_text(file)
    spec = importlib.util.spec_from_file_location("merge.methods.middle", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "merge.methods.middle", module)
    return eval("{" + line + "}", vars(merge.methods))["midpoint"]


def from_readme(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Method:
    """The script of the README, which adds its method to the table itself."""
    block = re.search(r"```python\n(.*?)```", README.split("## Add a method")[1], re.DOTALL)
    assert block
    exec(block[1], {})
    return METHODS.pop("midpoint")


@pytest.mark.parametrize("source", [from_page, from_readme])
def test_the_documented_method_runs_everywhere(
    source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(METHODS, "midpoint", source(tmp_path, monkeypatch))
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("vqa", "caption")}
    for value, path in enumerate(paths.values(), 1):
        merge.save_checkpoint({"weight": torch.full((2, 2), float(value)), "bias": torch.ones(2)}, path)
    inputs = tuple(merge.Input(name, path) for name, path in paths.items())
    made = merged_every_way(merge.Recipe("midpoint", inputs), tmp_path / "out.safetensors")
    assert made["weight"].unique().tolist() == [1.5]
    again = tmp_path / "again.safetensors"
    for words in (["merge", "midpoint", *map(str, paths.values()), "-o", str(again)], ["methods", "midpoint"]):
        monkeypatch.setattr(sys, "argv", ["unival-merge", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code in (0, None), capsys.readouterr().err
    assert torch.equal(merge.load_checkpoint(again)["weight"], made["weight"])
    assert "The middle of two checkpoints." in capsys.readouterr().out


def test_a_method_is_a_table_in_notebooks() -> None:
    shown = METHODS["slerp"]._repr_html_()
    assert shown.startswith(
        f"<table><caption>{html.escape(METHODS['slerp'].summary)}</caption><tr><th>formula</th><td>"
    )
    assert all(f"<tr><th>{name}</th><td>" in shown for name in METHODS["slerp"].parameters)
