"""What `import unival_core` offers, and when it is loaded."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import unival_core
from tests import house

WINGS = ("data", "metrics", "tasks", "training", "media", "commands")
VERBS = {"load_model", "save_model", "generate", "evaluate", "train"}
NAMES = VERBS | {"UnivalModel", "UnivalConfig", "CONFIGS", "TASKS", "METRICS", "Tokenizer", "UnivalError"}


def test_the_door_shows_what_it_offers() -> None:
    assert set(dir(unival_core)) == set(unival_core.__all__) >= NAMES
    source = ast.parse(Path(unival_core.__file__).read_text())
    taken = [node for node in ast.walk(source) if isinstance(node, ast.ImportFrom) and node.module != "__future__"]
    typed = {name.name: node.module for node in taken for name in node.names if "unival_core" in (node.module or "")}
    homes = {name: f"unival_core.{home}" for name, home in unival_core._HOME.items()}
    assert typed == homes | dict.fromkeys(("NotFinite", "UnivalError"), "unival_core.errors")
    for name in unival_core.__all__:
        assert getattr(unival_core, name) is not None
    assert all(callable(getattr(unival_core, verb)) for verb in VERBS)
    with pytest.raises(AttributeError, match="module 'unival_core' has no attribute 'infer'"):
        unival_core.infer  # noqa: B018


@pytest.mark.parametrize("wing", WINGS)
def test_every_wing_has_a_door(wing: str) -> None:
    module = importlib.import_module(f"unival_core.{wing}")
    assert module.__all__
    assert all(hasattr(module, name) for name in module.__all__)


def test_importing_the_package_does_not_load_torch() -> None:
    code = "import sys, unival_core; dir(unival_core); print({'torch', 'numpy', 'tokenizers'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_what_loads_models_and_generates_is_short() -> None:
    """Model, checkpoints, vocabulary, generation and image codes, with all that they import: less than 3,300 lines."""
    needed = {f"unival_core.{name}" for name in ("checkpoint", "vocabulary", "generation", "image_codes")}
    while further := {target for module in needed for target in house.graph()[module]} - needed:
        needed |= further
    lines = house.lines([house.modules()[module] for module in needed])
    assert 2000 < lines < 3300, sorted(needed)
