"""The commands and the Python of docs/vocabularies.md, as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import merge
from tests import ROOT
from tests.merge.shell import command
from tests.merge.tokenized import EMBED, language_model

PAGE = (ROOT / "docs/vocabularies.md").read_text(encoding="utf-8")
RECIPE = """
merge_method: linear
base_model: base
models: [{model: base, parameters: {weight: 1}}, {model: chat, parameters: {weight: 1}}]
tokenizer: {source: union, tokens: {<new>: {source: {kind: zero}}}}
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("yaml")
    monkeypatch.chdir(tmp_path)
    language_model(Path("base"), 0, padding=3)
    language_model(Path("chat"), 1, added=("<tool>", "<end>"))
    language_model(Path("think"), 2, added=("<end>", "<think>"), padding=1)
    Path("tokens.yml").write_text(RECIPE)
    rows: dict[str, int] = {}
    for line in "".join(blocks("sh")).splitlines():
        words = shlex.split(line, comments=True)
        outcome = command(*words[1:], "--no-sync")
        assert outcome.code == 0, outcome
        rows[words[-1]] = len(merge.open_checkpoint(words[-1])[EMBED])
    assert rows == {"merged": 8, "short": 5, "as-chat": 7, "padded": 8, "by-recipe": 8}
    scope = {"merge": merge}
    exec("".join(blocks("python")), scope)
    made: dict[str, object] = scope["merged"]  # type: ignore[assignment]
    assert len(made[EMBED]) == 9  # type: ignore[arg-type]
