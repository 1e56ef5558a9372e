"""What headers and tables tell is told without torch: its import costs more than all else together."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

import merge

# Runs command lines one after the other in one process; whatever imports torch is told by its first line.
DRIVER = """
import json, sys
from experiments.commands import main

class Refuse:
    def find_spec(self, name, path=None, target=None):
        assert name != "torch", "torch is imported"

sys.meta_path.insert(0, Refuse())
for line in json.loads(sys.argv[1]):
    sys.argv = ["unival-merge", *line]
    try:
        main()
    except SystemExit as left:
        print("->", left.code)
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What a few command lines print, each ended by its exit code, in a process where torch cannot be imported."""
    folder = tmp_path_factory.mktemp("headers")
    common = {"counter": torch.tensor(3), "same.weight": torch.ones(2, 3).bfloat16()}
    for name, more in {"a": torch.ones(3), "b": torch.ones(4)}.items():
        merge.save_checkpoint({**common, "w": more}, folder / f"{name}.safetensors")
        torch.save({"model": {**common, "w": more}, "epoch": 3}, folder / f"{name}.pt")
    merge.save_checkpoint({**common, "other": torch.ones(3)}, folder / "c.safetensors")
    merge.save_checkpoint({"w": torch.ones(3)}, folder / "d.npz")
    out = ["-o", "out.safetensors"]
    ratio = ["--ratio", "0.5", *out]
    lines = [
        ["--help"],
        ["interpolate", "--help"],
        ["methods"],
        ["methods", "ties"],
        ["inspect", "a.pt"],
        ["inspect", "a.safetensors", "--json"],
        ["inspect", "d.npz"],
        ["interpolate", "a.safetensors", "nowhere.pt", *ratio],
        ["interpolate", "a.pt", "b.pt", *ratio],
        ["interpolate", "a.safetensors", "c.safetensors", *ratio],
        ["sweep", "a.safetensors", "b.safetensors", "-o", "points"],
        ["average", "a.safetensors", "b.pt", "--keep", "w", "--dry-run", "-o", "out.pt"],
        ["merge", "ties", "a.pt", "b.pt", "--base", "a.pt", "-p", "density=0.5", *out],
        ["convert", "nowhere.pt", *out],
        ["doctor", "nowhere.pt", "a.pt"],
        ["diff", "a.pt", "nowhere.pt"],
        ["run", "nowhere.recipe.json", *out],
    ]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(lines)], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [done.stdout, done.stderr]


def test_headers_tables_and_mistakes_need_no_torch(told: list[str]) -> None:
    output, errors = told
    assert [int(line[3:]) for line in output.splitlines() if line.startswith("->")] == [0] * 7 + [2] * 4 + [0] + [2] * 5
    assert errors.splitlines() == [
        "error: nowhere.pt: no such file or folder",
        "error: w has shape [3] in a and [4] in b: pass --keep w or --drop w",
        "error: a lacks 1 tensor: other; c lacks 1 tensor: w; leave them as they are with --keep GLOB, leave them out "
        "with --drop GLOB, or pass --missing keep-first",
        "error: w has shape [3] in a and [4] in b: pass --keep w or --drop w",
        "error: w has shape [3] in base and [4] in b: pass --keep w or --drop w",
        "error: nowhere.pt: no such file or folder",
        "error: nowhere.pt: no such file or folder",
        "error: nowhere.pt: no such file or folder",
        "error: nowhere.recipe.json: not a recipe file: [Errno 2] No such file or directory: 'nowhere.recipe.json'",
    ]


def test_what_is_told_is_whole(told: list[str]) -> None:
    output, _ = told
    for text in (
        "bfloat16",
        "other entries\n  epoch: 3",
        "ties: Keep each task vector's largest",
        "nothing was written",
    ):
        assert text in output, text
