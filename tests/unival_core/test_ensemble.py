"""Several models as one: mean probabilities at every step, and a lone member's own answers."""

import pytest
import torch

from unival_core.config import CONFIGS
from unival_core.ensemble import Ensemble
from unival_core.errors import UnivalError
from unival_core.generation import GenerationOptions, generate
from unival_core.inputs import Inputs
from unival_core.likelihood import score_candidates
from unival_core.model import UnivalModel

CONFIG = CONFIGS["pocket"]
CANDIDATES = [[20, 21], [22], [23, 24]]
PREFIX = [[5], [6, 7]]


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    return [UnivalModel(CONFIG).eval() for _ in range(2)]


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(2, 3, 48, 48, generator=generator)
    return Inputs(tokens=torch.tensor([[0, 5, 9, 2], [0, 7, 2, 1]]), images=pixels)


def logits(model, inputs, tokens=((0, 5), (0, 6))):
    return model.decode(torch.tensor(tokens), model.start(model.encode(inputs))).detach()


def test_probabilities_are_the_mean_of_the_members(models, inputs):
    found = logits(Ensemble(models, [0.25, 0.75]).eval(), inputs).softmax(-1)
    first, second = (logits(model, inputs).softmax(-1) for model in models)
    torch.testing.assert_close(found, 0.25 * first + 0.75 * second)


@pytest.mark.parametrize("shares", [[1.0, 0.0], [0.0, 1.0]])
def test_one_member_with_all_shares_is_that_member_bitwise(models, inputs, shares):
    model, both = models[shares.index(1.0)], Ensemble(models, shares).eval()
    assert torch.equal(logits(both, inputs), logits(model, inputs))
    options = GenerationOptions(beam=3, max_len_b=6)
    assert generate(both, inputs, options) == generate(model, inputs, options)
    scores = score_candidates(both, inputs, CANDIDATES, prefix=PREFIX)
    assert torch.equal(scores, score_candidates(model, inputs, CANDIDATES, prefix=PREFIX))


def test_a_model_with_itself_answers_as_alone(models, inputs):
    both = Ensemble([models[0], models[0]], [0.5, 0.5]).eval()
    for beam in (1, 3):
        options = GenerationOptions(beam=beam, max_len_b=6)
        for own, alone in zip(generate(both, inputs, options), generate(models[0], inputs, options), strict=True):
            assert [sentence.tokens for sentence in own] == [sentence.tokens for sentence in alone]
    torch.testing.assert_close(
        score_candidates(both, inputs, CANDIDATES), score_candidates(models[0], inputs, CANDIDATES)
    )


def test_shares_can_be_set_again(models, inputs):
    both = Ensemble(models, [0.5, 0.5]).eval()
    both.shares = [0.0, 1.0]
    assert torch.equal(logits(both, inputs), logits(models[1], inputs))


@pytest.mark.parametrize("shares", [[1.0], [0.5, 0.6], [1.5, -0.5]])
def test_shares_that_are_none_are_refused(models, shares):
    with pytest.raises(UnivalError, match="give one each, with sum 1"):
        Ensemble(models, shares)


def test_members_have_one_vocabulary(models):
    other = UnivalModel(
        CONFIG.__class__.from_json(CONFIG.to_json().replace(f'"text_ids": {CONFIG.text_ids}', '"text_ids": 90'))
    )
    with pytest.raises(UnivalError, match="one vocabulary"):
        Ensemble([models[0], other], [0.5, 0.5])
