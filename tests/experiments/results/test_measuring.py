"""What task vectors of known angles say of each other."""

import math

import pytest
import torch

from experiments.results.measuring import geometry


def test_task_vectors_of_known_angles():
    base = {"w": torch.zeros(3), "norm.running_var": torch.ones(3), "count": torch.ones(1, dtype=torch.int64)}
    first = {**base, "w": torch.tensor([3.0, 4.0, 0.0]), "norm.running_var": torch.full((3,), 9.0)}
    second = {**base, "w": torch.tensor([-6.0, 8.0, 0.0])}
    found = geometry(base, first, second)
    assert found == pytest.approx(
        {"first_length": 5, "second_length": 10, "distance": math.sqrt(97), "cosine": 0.28, "agreement": 0.5}
    )
    assert math.isnan(geometry(base, base, second)["cosine"])
