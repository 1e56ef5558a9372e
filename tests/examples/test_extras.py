"""The examples behind extras, with fewer points: published models of atoms, adapters of a tiny language model."""

import shutil

import numpy as np
import pytest

import experiments
import merge
from experiments.results.files import load_study
from tests import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def values(results, metric, split="test"):
    """Values by point and task, of merges by interpolation and of models as they are."""
    rows = results.rows.query("metric == @metric and split == @split and method in ('single', 'interpolate')")
    return {(row["point"], row["task"]): row["value"] for row in rows.to_dict("records")}


def test_between_two_published_models_of_atoms(tmp_path):
    pytest.importorskip("chgnet")
    results = experiments.run(
        load_study(str(ROOT / "examples" / "chgnet_r2scan.py")), tmp_path, points=3, split="test", progress=False
    )
    assert results.ran.failed == 0
    forces, middle = values(results, "forces"), "0.50 parent + 0.50 child"
    for own, other in (("parent", "child"), ("child", "parent")):
        assert forces[f"1.00 {own}", own] == 0
        assert 0 < forces[middle, own] < forces[f"1.00 {other}", own]
    size = values(results, "size")
    assert size["1.00 child", "lattice"] < size[middle, "lattice"] < size["1.00 parent", "lattice"] < 2
    energy = values(results, "energy")
    assert energy[middle, "parent"] == pytest.approx(energy["1.00 child", "parent"] / 2, rel=0.02)


def test_two_adapters_of_a_tiny_language_model(tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    file = shutil.copy(ROOT / "examples" / "tiny_llama.py", tmp_path)
    results = experiments.run(load_study(str(file)), tmp_path / "rows", points=3, split="test", progress=False)
    assert results.ran.failed == 0
    assert set(results.rows["unit"]) == {"nats per token"}
    nats = values(results, "nll")
    for own, other in (("sums", "rhymes"), ("rhymes", "sums")):
        assert nats[f"1.00 {own}", own] < nats[f"1.00 {other}", own]
    home = tmp_path / "llama-experts"
    base, expert = (merge.load_checkpoint(home / f"{name}.safetensors") for name in ("base", "sums"))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert np.linalg.matrix_rank((expert[name] - base[name]).numpy(), tol=1e-5) == 8
