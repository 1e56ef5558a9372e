"""What an index of packages shows."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tests import ROOT


@pytest.fixture
def setup() -> ModuleType:
    pytest.importorskip("setuptools")
    spec = importlib.util.spec_from_file_location("setup_of_the_package", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_leads_nowhere_that_is_not_there(setup: ModuleType) -> None:
    text = "![curves](results/a.png)\n[a](docs/a.md#b), [site](https://x.org/), [here](#below), `[a](b c)`"
    assert setup.description(text, "") == "\na, [site](https://x.org/), [here](#below), `[a](b c)`"
    assert setup.description(text, "https://x.org/u") == (
        "![curves](https://x.org/u/raw/main/results/a.png)\n"
        "[a](https://x.org/u/blob/main/docs/a.md#b), [site](https://x.org/), [here](#below), `[a](b c)`"
    )


def test_the_readmes_own_links_are_files(setup: ModuleType) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = setup.description(readme, "https://x.org/u").split("https://x.org/u/blob/main/")[1:]
    assert found
    for link in found:
        assert Path(ROOT / link.partition(")")[0].partition("#")[0]).exists(), link[:80]
