"""What others need to join: files of the project that no other test reads say what is true."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests import ROOT

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"(?m)^([a-z-]+):", MAKEFILE))


def yaml_file(path: str) -> Any:
    """What a file of YAML holds."""
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["checks", "nightly"])
def test_workflows_run_what_a_user_runs(name: str) -> None:
    jobs = yaml_file(f".github/workflows/{name}.yml")["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert commands
    for command in commands:
        program, *words = command.split()
        assert program == ".ci/run" or (program == "make" and set(words) <= TARGETS), command


def test_every_python_of_the_package_is_checked() -> None:
    pythons = yaml_file(".github/workflows/checks.yml")["jobs"]["checks"]["strategy"]["matrix"]["python"]
    told = re.findall(r"Python :: (3\.\d+)", (ROOT / "setup.cfg").read_text(encoding="utf-8"))
    assert pythons == ["3.10", "3.11", "3.12", "3.13"]
    assert set(told) <= set(pythons)


def test_hooks_are_the_checks_of_make() -> None:
    (hooks,) = (repo["hooks"] for repo in yaml_file(".pre-commit-config.yaml")["repos"])
    check = MAKEFILE.split("\ncheck:")[1].split("\n\n")[0].replace("$(BIN)", ".venv/bin").replace(" --check", "")
    for hook in hooks:
        assert hook["entry"].replace(" --force-exclude", "") in check


def test_templates_and_citation_are_read() -> None:
    for path in sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")):
        form = yaml_file(path.relative_to(ROOT).as_posix())
        assert path.stem == "config" or {"name", "description", "body"} <= set(form)
    citation = yaml_file("CITATION.cff")
    assert citation["authors"] == [{"name": "the unival-merge developers"}]
    assert citation["references"][0]["identifiers"][0]["value"] == "arXiv:2307.16184"


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "SECURITY.md"])
def test_what_they_name_is_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    places = [word for word in re.findall(r"`([\w./*-]+/[\w./*-]*)`", text) if word.split("/")[0] in FOLDERS]
    assert places
    for place in places:
        assert list(ROOT.glob(place.rstrip("/"))), place
    for target in re.findall(r"`make ([a-z-]+)`", text):
        assert target in TARGETS


FOLDERS = ("merge", "unival_core", "experiments", "tests", "docs", "benchmarks", "results", "examples")
