"""Benchmarks are run by hand; the one that a GPU is lent for seldom runs small here, so that it is ready."""

import json
import subprocess
import sys

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
