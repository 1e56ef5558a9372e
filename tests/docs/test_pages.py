"""Every page's code runs, or says why not; every link leads somewhere; the site needs no network to be read."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import merge
from merge.methods import METHODS
from merge.recipe.mergekit import named
from tests import ROOT
from tests.docs.blocks import ELSEWHERE, NOT_RUN, anchors, blocks, importable, indented, links
from tests.docs.running import run_page
from tests.docs.worlds import WORLDS

OUTSIDE = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "benchmarks/README.md")
RESULTS = [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("results/**/README.md"))]
DOCS = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [*OUTSIDE, *RESULTS, *DOCS]
SLOW = {"docs/how-to/ratio.md"}  # trains experts


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """What mkdocs calls, without mkdocs."""
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site_hooks.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", [pytest.param(page, marks=[pytest.mark.slow] * (page in SLOW)) for page in WORLDS])
def test_the_blocks_of_a_page_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run_page(page, WORLDS[page]()) > 0


@pytest.mark.parametrize("page", PAGES)
def test_a_block_runs_or_says_why_not(page: str) -> None:
    assert indented(page) == []
    for block in [] if page.startswith("results/") else blocks(page):  # those tell what was called, for hours
        assert block.language, f"{block.place}: a block without a language"
        if ELSEWHERE.match(block.note):
            importable(block)
        elif block.language in ("python", "sh", "py"):
            assert NOT_RUN.match(block.note) or page in WORLDS, f"{block.place} is neither run nor marked"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page: str, hooks: ModuleType) -> None:
    made = {f"docs/{name}" for name in (*hooks.PAGES, *hooks.FILES)}
    for target in links(page):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (ROOT / page).parent / path if path else ROOT / page
        name = found.resolve().relative_to(ROOT).as_posix()
        if name in made:
            continue
        figure = ROOT / name.removeprefix("docs/")  # of the results, which the site has beside the pages
        assert found.exists() or (name.startswith("docs/results/") and figure.exists()), f"{page}: {target}"
        if anchor and found.suffix == ".md":
            assert anchor in anchors(found), f"{page}: {target}"


def test_every_page_is_in_the_navigation(hooks: ModuleType) -> None:
    told = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:")[1]))
    pages = {page.removeprefix("docs/") for page in DOCS} | set(hooks.PAGES) | set(hooks.FILES)
    assert {page for page in pages if not page.startswith("results/pocket")} == told


def test_pages_are_made_from_the_code(hooks: ModuleType) -> None:
    made = {page: write() for page, write in hooks.PAGES.items()}
    for command in ("interpolate", "study run", "evaluate"):
        assert f"### {command}\n" in made["reference/commands.md"]
    assert "`--ratio RATIO`" in made["reference/commands.md"]
    assert "| 128 + n |" in made["reference/commands.md"]
    assert "::: merge.engine.memory.interpolate" in made["reference/merge.md"]
    assert "::: experiments.errors.StudyError" in made["reference/experiments.md"]
    assert "| CIDEr-D |" in made["reference/metrics.md"]
    assert "## retention\n" in made["glossary.md"]
    for figure in ROOT.glob("results/*/*.png"):
        assert figure.relative_to(ROOT).as_posix().replace("+", "%2B") in made["gallery.md"]


def test_links_of_pages_from_elsewhere_are_turned(hooks: ModuleType) -> None:
    text = "[a](docs/methods.md#x) [b](results/pocket-averaging) [c](setup.cfg) [d](https://x.org) ![e](f.png)"
    wanted = "[a](../methods.md#x) [b](../results/pocket-averaging.md) c (`setup.cfg`) [d](https://x.org) ![e](f.png)"
    assert hooks.relinked(text, "CONTRIBUTING.md", "project/contributing.md") == wanted
    assert hooks.relinked("[a](../pocket-search)", "results/x/README.md", "results/x.md") == "[a](pocket-search.md)"


@pytest.mark.parametrize(
    ("html", "count"),
    [
        ('<script src="https://cdn.org/x.js"></script>', 1),
        ("<script async src=//cdn.org/x.js></script>", 1),
        ('<link rel="stylesheet" href="https://fonts.org/css">', 1),
        ('<link href="https://fonts.org" rel="preconnect">', 1),
        ('<img alt="" src="https://x.org/a.png">', 1),
        ("a { background: url(https://x.org/a.png) }", 1),
        ('<a href="https://x.org">x</a> <link rel="canonical" href="https://x.org">', 0),
        ('<script src="../assets/x.js"></script><img src="data:image/png;base64,AA==">', 0),
    ],
)
def test_what_a_page_would_load_is_found(html: str, count: int, hooks: ModuleType) -> None:
    assert len(hooks.outside(html)) == count


def test_words_of_other_tools_are_ours() -> None:
    """Every method that the table for mergekit's users names is there, and is what its recipes are read as."""
    page = (ROOT / "docs" / "how-to" / "mergekit.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:3] for line in page.splitlines() if line.startswith("| ")]
    theirs = {"dare_ties", "della_linear", "model_stock", "arcee_fusion", "breadcrumbs_ties", "nuslerp", "karcher"}
    for word in theirs:
        ours = named(word, with_base=False)
        assert ours in METHODS
        assert any(f"`{word}`" in left and f"`{ours}`" in right for left, right in rows)


def test_symptoms_name_findings() -> None:
    table = (ROOT / "docs" / "how-to" / "collapse.md").read_text(encoding="utf-8").split("\n## ")[0]
    codes = set(re.findall(r"`([a-z]+(?:-[a-z]+)+)`", table))
    known = set(re.findall(r"(?m)^\| `([a-z-]+)` \|", (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")))
    assert codes - known == {"task-arithmetic"}
    assert len(codes) > 15


def test_snippets_of_parameters_are_read(tmp_path: Path) -> None:
    """The mapping and the groups that docs/methods.md shows."""
    values, groups = (ast.literal_eval(one.text) for one in blocks("docs/methods.md") if one.language == "py")
    state = {"encoder.layers.0.w": torch.ones(2), "embed.w": torch.ones(2)}
    moved = {
        name: {key: value + share for key, value in state.items()} for share, name in enumerate(("vqa", "caption"), 1)
    }
    made = merge.merge_with("ties", moved, base=state, **values)
    assert made["embed.w"].tolist() == [2, 1]  # half of it, of vqa alone
    layers = ("fc1", "fc2", "layers.0.fc1", "layers.0.fc2")
    model = {
        f"{layer}.{part}": torch.zeros((4, 4)[: 1 + (part == "weight")])
        for layer in layers
        for part in ("weight", "bias")
    }
    file = tmp_path / "groups.json"
    file.write_text(json.dumps(groups))
    assert set(merge.read_groups(file, model).sizes) == {"hidden", "mlp0"}
