"""Benchmarks are run by hand; the one that a GPU is lent for seldom runs small here, so that it is ready."""

import argparse
import json
import runpy
import subprocess
import sys

import pytest
import torch

from tests import ROOT


def test_the_gpu_benchmark_runs_on_a_processor(tmp_path):
    output = tmp_path / "gpu.json"
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--config", "pocket", "--points", "3"]
    ran = subprocess.run(
        [*command, "--repeats", "1", "--output", str(output)], cwd=ROOT, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(output.read_text())
    assert found["grid fp32, furthest from the processor's rows"] == 0
    assert found["grid bf16, cells per minute"] > 0


@pytest.mark.slow
def test_captioning_is_measured_at_every_size_of_a_batch(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])  # a script puts the repository there
    captioning = runpy.run_path(str(ROOT / "benchmarks" / "model.py"))["captioning"]
    given = {"caption": 3, "config": "pocket", "batches": [1, 2], "caption_threads": [1], "side": 8}
    threads = torch.get_num_threads()
    found = captioning(argparse.Namespace(**given))
    torch.set_num_threads(threads)
    rates = [f"batch {batch}, 1 threads [images/s]" for batch in (1, 2)]
    assert [*found] == [*rates, "setting", "machine"]
    assert all(found[rate] > 0 for rate in rates)
