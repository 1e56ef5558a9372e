"""Self-critical training: boxes are compared with other draws, and more of them become right."""

import math
from dataclasses import replace

import pytest
import torch

from tests.unival_core.training.made_run import PLAIN, datasets, fresh, run, tokenizer
from unival_core.data.batch import collate
from unival_core.errors import UnivalError
from unival_core.training.options import RewardOptions
from unival_core.training.rewards import RewardLoss


def test_advantages_compare_a_box_with_the_other_draws(tables):
    data = datasets(tables, "grounding")["grounding"]
    batch = collate([data.read(0), data.read(4)])
    loss = RewardLoss(fresh(), tokenizer(), RewardOptions(samples=3, areas=(0, 100)))
    right, wrong = batch.targets[0, :4].tolist(), batch.targets[1, :4].tolist()
    drawn = torch.tensor([[right, wrong, wrong], [wrong, wrong, right]])
    assert loss.advantages(batch, drawn).squeeze(-1).tolist() == [[1.0, -0.5, -0.5], [0.5, 0.5, -1.0]]
    assert loss.count([batch], 1) == {"grounding": 24}
    large = RewardLoss(fresh(), tokenizer(), RewardOptions(samples=3, areas=(100, math.inf)))
    assert not large.advantages(batch, drawn).any()
    assert large.count([batch], 1) == {"grounding": 0}


def test_rewards_raise_the_share_of_right_boxes(tables, tmp_path):
    model, _ = run(tables, tmp_path / "ce", replace(PLAIN, updates=40, lr=1e-2, batch=16), ("grounding",))
    data = datasets(tables, "grounding")["grounding"]
    batch = collate([data.read(row) for row in range(16)])
    loss = RewardLoss(model.eval(), tokenizer(), RewardOptions(samples=16))

    def share():
        torch.manual_seed(0)
        drawn = loss.draw(batch)
        right = batch.targets[:, None, :4]
        return float((drawn == right).all(-1).float().mean())

    before = share()
    options = replace(PLAIN, updates=30, lr=3e-3, batch=16, reward=RewardOptions(samples=8), batchnorm="freeze")
    run(tables, tmp_path / "reward", options, ("grounding",), model=model)
    assert before < 0.9
    assert share() > before + 0.08


def test_rewards_need_boxes(tables, tmp_path):
    with pytest.raises(UnivalError, match="has no box to reward"):
        run(tables, tmp_path / "run", replace(PLAIN, reward=RewardOptions()), ("vqa",))
