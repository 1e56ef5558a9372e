"""Devices and precisions, as far as a processor can show them."""

from unittest.mock import Mock

import pytest
import torch

import experiments
from experiments import StudyError
from experiments.grid.engines.local import spread
from experiments.grid.worker import fits, kind_of
from tests.experiments.made_study import CALLS, study


def test_processes_are_spread_over_the_visible_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert spread("cuda", 3) == ["cuda:0", "cuda:1", "cuda:0"]
    assert spread("cuda:1", 2) == ["cuda:1", "cuda:1"]
    assert spread("cpu", 2) == ["cpu", "cpu"]
    assert [kind_of(device) for device in ("cpu", "cuda", "cuda:1")] == ["cpu", "cuda", "cuda"]


def test_endpoints_stay_on_a_device_that_has_room(monkeypatch):
    """They and what answers take, once as much as a model, on a made GPU of 1,000 bytes."""
    model = Mock(state_dict=lambda: {"w": Mock(spec=torch.Tensor, device=torch.device("cuda"))})
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    assert fits(model, [Mock(nbytes=300)] * 2)
    assert not fits(model, [Mock(nbytes=400)] * 2)
    assert fits(torch.nn.Linear(1, 1), [Mock(nbytes=10**15)])


def test_answers_in_half_precision_are_rows_of_their_own(tmp_path):
    single = experiments.run(study(points=3, splits="test"), tmp_path, progress=False)
    CALLS.clear()
    half = experiments.run(study(points=3, splits="test"), tmp_path, precision="bf16", progress=False)
    assert len(CALLS) == 6
    assert len(experiments.read_rows(tmp_path / "rows.jsonl")) == 12
    assert set(half.rows["precision"]) == {"bf16"}
    assert set(half.rows["device"]) == {"cpu"}
    assert list(single.rows["key"]) == list(half.rows["key"])  # both are the folder as it is


def test_a_missing_device_is_one_line_before_anything_starts(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    CALLS.clear()
    with pytest.raises(StudyError, match="--device cuda"):
        experiments.run(study(), tmp_path, device="cuda")
    assert not CALLS
    assert not (tmp_path / "rows.jsonl").exists()
