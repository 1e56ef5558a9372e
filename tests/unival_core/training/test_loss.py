"""Losses against recordings, hand-computed values and laws."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.unival_core.golden import filled, inputs_of, recorded
from unival_core.config import CONFIGS, replace
from unival_core.errors import UnivalError
from unival_core.training.loss import LossOptions, LossValue, token_loss

TOLERANCE = {"atol": 1e-4, "rtol": 1e-5}


def loss_of(variant: dict[str, Any], logits: Tensor, targets: Tensor, tensors: dict[str, Tensor]) -> LossValue:
    """Our loss, by the original's names of its options. Its drop_best never had an effect."""
    arguments, extra = variant["criterion_args"], variant["sample_extra"]
    bounds = arguments.get("constraint_range")
    options = LossOptions(
        smoothing=arguments["eps"],
        allowed_range=None if bounds is None else tuple(map(int, bounds.split(","))),
        ignore_prefix=arguments.get("ignore_prefix_size", 0),
        encourage_until=arguments["log_end"] if variant["kind"] == "el" else None,
        drop_worst=arguments.get("drop_worst_ratio", 0.0),
        drop_after=arguments.get("drop_worst_after", 0),
    )
    confidence = tensors["in.conf"] if "conf" in extra else None
    allowed = tensors["in.constraint_masks"] if "constraint_masks" in extra else None
    if arguments.get("use_rdrop"):  # a doubled batch, whose divergence was 0
        logits, targets = torch.cat((logits, logits)), torch.cat((targets, targets))
    return token_loss(logits, targets, options, update=variant["update_num"], confidence=confidence, allowed=allowed)


def check(value: LossValue, wanted: Tensor, size: int) -> None:
    got = torch.stack((value.loss, value.likelihood, torch.tensor(float(size)))).double()
    assert_close(got, wanted, **TOLERANCE)


def test_synthetic_recordings() -> None:
    tensors, note = recorded("loss_synthetic")
    for name, variant in note["variants"].items():
        value = loss_of(variant, tensors["in.logits"], tensors["in.target"], tensors)
        check(value, tensors[name], value.tokens)


@pytest.mark.parametrize(("prefix", "scale"), [("x1", 1.0), ("x6", 6.0)])
def test_model_recordings(prefix: str, scale: float) -> None:
    tensors, note = recorded("tiny_loss")
    model = filled(replace(CONFIGS["tiny"], video=None, audio=None), scale)
    with torch.no_grad():
        logits = model(inputs_of(tensors), tensors["in.prev_output_tokens"])
    for name, variant in note["variants"].items():
        targets = tensors["in.target"]
        if name == "ls_range":
            targets = torch.where(targets >= 180, targets - 30, targets)
        value = loss_of(variant, logits, targets, tensors)
        per_sentence = variant["criterion_args"].get("sentence_avg")
        check(value, tensors[f"{prefix}.{name}"], len(targets) if per_sentence else value.tokens)


def scores(*rows: list[float]) -> Tensor:
    """One sample whose logits are the logarithms of these probabilities."""
    return torch.tensor([rows]).log()


def test_plain_cross_entropy_by_hand() -> None:
    value = token_loss(scores([0.5, 0.25, 0.125, 0.125], [0.25, 0.25, 0.25, 0.25]), torch.tensor([[2, 0]]))
    assert_close(value.loss.item(), math.log(8) + math.log(4))
    assert (value.tokens, value.mean.item()) == (2, value.loss.item() / 2)


def test_padding_counts_for_nothing() -> None:
    logits = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[5, 2, 1], [7, 1, 1]])
    value = token_loss(logits, targets)
    assert value.tokens == 3
    assert_close(
        value.loss, token_loss(logits[:1, :2], targets[:1, :2]).loss + token_loss(logits[1:, :1], targets[1:, :1]).loss
    )
    nothing = token_loss(logits, torch.ones_like(targets))
    assert (nothing.loss.item(), nothing.mean.item(), nothing.tokens) == (0, 0, 0)


def test_smoothing_by_hand() -> None:
    value = token_loss(scores([0.5, 0.25, 0.125, 0.125]), torch.tensor([[2]]), LossOptions(smoothing=0.3))
    others = -(math.log(0.5) + math.log(0.25) + math.log(0.125))  # each gets 0.3 / 3
    assert_close(value.loss.item(), 0.7 * math.log(8) + 0.1 * others)
    assert_close(value.likelihood.item(), math.log(8))


def test_encouragement_is_continuous_at_its_end() -> None:
    target = torch.tensor([[0]])
    just = [
        token_loss(scores([p, 1 - p, 0.0]), target, LossOptions(encourage_until=0.75)).loss for p in (0.7499, 0.7501)
    ]
    assert_close(just[0], just[1], atol=2e-3, rtol=0)
    by_hand = -math.log(0.5) + math.log(0.5)
    assert_close(token_loss(scores([0.5, 0.5, 0.0]), target, LossOptions(encourage_until=1.0)).loss.item(), by_hand)


def test_dropping_the_best_and_the_worst() -> None:
    chances = [0.1, 0.9, 0.5, 0.3, 0.7]
    logits, targets = scores(*([p, 1 - p, 0.0] for p in chances)), torch.zeros(1, 5, dtype=torch.long)
    options = LossOptions(drop_best=0.2, drop_worst=0.4, drop_after=10)
    assert_close(token_loss(logits, targets, options, update=11).loss.item(), -math.log(0.7) - math.log(0.5))
    assert token_loss(logits, targets, options, update=10).tokens == 5
    worst = LossOptions(drop_worst=0.2)
    assert_close(token_loss(logits, targets, worst, update=1).loss.item(), -sum(map(math.log, sorted(chances)[1:])))


def test_gradients_stay_finite_under_masks() -> None:
    logits = torch.randn(2, 3, 9, requires_grad=True)
    allowed = torch.zeros(2, 3, 9, dtype=torch.bool)
    allowed[..., 4:6] = True
    options = LossOptions(smoothing=0.1, encourage_until=0.75)
    token_loss(
        logits, torch.full((2, 3), 4), options, allowed=allowed, confidence=torch.tensor([1.0, 0.3])
    ).loss.backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
    assert float(logits.grad[..., :4].abs().sum()) == 0


def test_mistakes() -> None:
    with pytest.raises(UnivalError, match=r"drop_worst 0.6 and drop_best 0.5 leave no token"):
        LossOptions(drop_worst=0.6, drop_best=0.5)
    mask = torch.ones(1, 1, 5, dtype=torch.bool)
    with pytest.raises(UnivalError, match="exclude each other"):
        token_loss(torch.zeros(1, 1, 5), torch.zeros(1, 1).long(), LossOptions(allowed_range=(4, 5)), allowed=mask)
