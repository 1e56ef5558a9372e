"""Models of the hub by name, from a made cache: nothing here reaches a network."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from merge import MergeError, load_checkpoint, open_checkpoint
from merge.checkpoint.hub import hub_id
from tests.merge.shell import command, done

COMMIT = "0123abcd"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with me/tiny-1.5 (at main), as the hub's library lays it out, and no library to fetch anything."""
    model = tmp_path / "cache" / "models--me--tiny-1.5"
    snapshot = model / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (model / "blobs").mkdir()
    save_file({"w": torch.ones(2)}, model / "blobs" / "aa", {"format": "pt"})
    (snapshot / "model.safetensors").symlink_to("../../blobs/aa")
    (snapshot / "config.json").write_text("{}")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    return snapshot


@pytest.mark.parametrize("name", ["me/tiny-1.5", "me/tiny-1.5@main", f"hf://me/tiny-1.5@{COMMIT}", "hf://me/tiny-1.5"])
def test_a_name_means_what_the_cache_has(name: str, cache: Path) -> None:
    opened = open_checkpoint(name)
    assert opened.path == cache
    assert torch.equal(opened["w"], torch.ones(2))
    assert set(open_checkpoint("hf://me/tiny-1.5/model.safetensors")) == {"w"}


def test_a_path_that_exists_wins(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "me" / "tiny-1.5").mkdir(parents=True)
    save_file({"mine": torch.zeros(2)}, tmp_path / "me" / "tiny-1.5" / "model.safetensors")
    assert set(open_checkpoint("me/tiny-1.5")) == {"mine"}
    assert set(open_checkpoint("hf://me/tiny-1.5")) == {"w"}


def test_recipes_and_cards_name_the_model_and_its_commit(cache: Path, tmp_path: Path) -> None:
    save_file({"w": torch.full((2,), 3.0)}, tmp_path / "b.safetensors")
    shown = done("average", "me/tiny-1.5", "b.safetensors", "-o", "out")
    assert shown.said == "out: average: 0.50 tiny-1.5 + 0.50 b\n"
    assert shown.err == "note: taken over from me/tiny-1.5: config.json\n"
    recipe = json.loads((tmp_path / "out.recipe.json").read_text())
    assert recipe["inputs"][0]["path"] == f"hf://me/tiny-1.5@{COMMIT}"
    assert (tmp_path / "out" / "README.md").read_text().startswith('---\nbase_model:\n- "me/tiny-1.5"\n- "b"\n')
    done("run", "out.recipe.json", "-o", "again.safetensors")
    assert torch.equal(load_checkpoint("again.safetensors")["w"], torch.full((2,), 2.0))
    (tmp_path / "soup.yml").write_text(
        "merge_method: linear\nmodels:\n- model: me/tiny-1.5\n  parameters: {weight: 1}\n"
        "- model: b.safetensors\n  parameters: {weight: 3}\n"
    )
    assert done("run", "soup.yml", "-o", "soup.pt").said == "soup.pt: linear: 0.25 tiny-1.5 + 0.75 b (normalize true)\n"


@pytest.mark.parametrize("name", ["me/other", "me/tiny-1.5@v2", "hf://me/other"])
def test_without_the_library(name: str, cache: Path) -> None:
    outcome = command("inspect", name)
    assert (outcome.code, outcome.out) == (2, "")
    assert "is not in the hub's cache; to fetch it: pip install 'unival-merge[hub]'" in outcome.err
    assert outcome.err.count("\n") == 1


def test_what_is_no_name_of_the_hub(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    for path in ("runs/best", "no/file.safetensors", "missing", "/no/where", "a/b/c"):
        with pytest.raises(MergeError, match=f"^{path}: no such file or folder$"):
            open_checkpoint(path)
    with pytest.raises(MergeError, match="is no name of a model of the hub"):
        open_checkpoint("hf://me")
    assert hub_id(cache / "model.safetensors") == "me/tiny-1.5"
    assert hub_id("runs/vqa") == ""


def test_fetching(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every folder the safetensors, else the torch files; what goes wrong is one line."""
    asked: dict[str, Any] = {}
    files = ["model.safetensors", "pytorch_model.bin", "2_Dense/pytorch_model.bin", "config.json"]

    class HfApi:
        def model_info(self, name: str, revision: str, timeout: float) -> Any:
            if name != "me/new":
                raise OSError("offline\nmode")
            return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in files])

    def snapshot_download(name: str, revision: str, ignore_patterns: list[str]) -> str:
        asked.update(name=name, revision=revision, left=ignore_patterns)
        return str(cache)

    library = SimpleNamespace(HfApi=HfApi, snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", library)
    assert set(open_checkpoint("me/new@v1")) == {"w"}
    assert (asked["name"], asked["revision"]) == ("me/new", "v1")
    assert "pytorch_model.bin" in asked["left"]
    assert "2_Dense/pytorch_model.bin" not in asked["left"]
    with pytest.raises(MergeError, match=r"neither in the hub's cache nor can it be fetched \(offline mode\)"):
        open_checkpoint("me/gone")
    (cache / "model.safetensors").unlink()  # a cache with some of the files only
    with pytest.raises(MergeError, match="neither in the hub's cache"):
        open_checkpoint("me/tiny-1.5")
