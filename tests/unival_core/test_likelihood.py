"""The likelihood of references and the confidence in answers, against closed forms and against ranking."""

import math

import numpy as np
import pytest
import torch

from tests.unival_core.made_rows import POCKET, TOKENIZER, dataset
from unival_core.data.batch import collate
from unival_core.ensemble import Ensemble
from unival_core.errors import NotFinite
from unival_core.evaluation import evaluate
from unival_core.generation import GenerationOptions
from unival_core.likelihood import negative_log_likelihood, score_candidates
from unival_core.model import UnivalModel

LIST = ["four", "red", "dark red"]
LOSS, CONFIDENCE = "negative log-likelihood", "confidence"


def batch_of(data):
    return collate([data[row] for row in range(len(data))])


@pytest.fixture(scope="module")
def blank(pocket):
    """A model that finds all ids equally probable."""
    model = UnivalModel(POCKET).eval()
    model.load_state_dict(pocket.state_dict())
    with torch.no_grad():
        model.decoder.layer_norm.weight.zero_()
        model.decoder.layer_norm.bias.zero_()
    return model


def by_hand(model, batch, target, row=0):
    """The same of one target behind the prefix, over all ids."""
    prefix = batch.prefix[row]
    ids = torch.tensor([[0, *prefix, *target]])
    inputs = collate([batch.examples[row]]).inputs
    with torch.no_grad():
        scores = model.decode(ids, model.start(model.encode(inputs)))[0].log_softmax(-1)
    wanted = [*target, 2]
    return -float(sum(scores[len(prefix) + place, token] for place, token in enumerate(wanted))) / len(wanted)


@pytest.mark.parametrize("task", ["vqa", "grounding", "caption", "image-generation"])
def test_it_is_the_mean_over_the_tokens_of_what_training_teaches(tmp_path, pocket, task):
    batch = batch_of(dataset(tmp_path / "data.tsv", task, 2))
    if task == "image-generation":  # whose positions are those of an image
        with torch.no_grad():
            scores = -pocket(batch.inputs, batch.target_inputs, batch.code_rows).log_softmax(-1)
        chosen = scores.gather(-1, batch.targets.unsqueeze(-1)).mean((1, 2)).tolist()
        assert negative_log_likelihood(pocket, batch) == pytest.approx(chosen, rel=1e-4)
        return
    found = negative_log_likelihood(pocket, batch)
    for row, example in enumerate(batch.examples):
        several = [by_hand(pocket, batch, target, row) for target in (example.target, *example.further)]
        assert found[row] == pytest.approx(np.mean(several), rel=1e-4)


def test_captions_are_measured_by_all_references(tmp_path):
    batch = batch_of(dataset(tmp_path / "data.tsv", "caption", 2))
    said = [[TOKENIZER.decode(ids) for ids in (one.target, *one.further)] for one in batch.examples]
    assert said == [["a red seven"], ["two digits", "a blue three left", "a red seven and a blue three"]]
    training = dataset(tmp_path / "data.tsv", "caption", 2, training=True)
    assert all(training.read(row).further == [] for row in range(2))


def test_allowed_answers_share_all_probability(tmp_path, pocket):
    """Ranked answers have the same probability, summed over their tokens."""
    data = dataset(tmp_path / "data.tsv", "entailment", 4)
    batch = batch_of(data)
    ranks = score_candidates(pocket, batch.inputs, data.answers.ids, prefix=batch.prefix)
    right = [data.answers.ids.index(one.target) for one in batch.examples]
    wanted = [-float(ranks[row, place]) / 2 for row, place in enumerate(right)]  # a word and eos
    assert negative_log_likelihood(pocket, batch, data.answers) == pytest.approx(wanted, rel=1e-4)


def test_a_model_that_knows_nothing(tmp_path, blank):
    data = dataset(tmp_path / "data.tsv", "vqa", 2, answers=LIST)
    result = evaluate(blank, data, metrics=["VQA accuracy", LOSS, CONFIDENCE], batch_size=1, progress=False)
    # One of three words, then eos; "dark" goes on to "red" alone.
    assert result.scores[LOSS].per_example == pytest.approx([math.log(3) / 2, math.log(3) / 3])
    assert result.scores[CONFIDENCE].per_example == pytest.approx([1 / 3, 1 / 3], rel=1e-5)
    alone = dataset(tmp_path / "data.tsv", "vqa", 2, answers=["red", "dark red"])
    own, other = evaluate(blank, alone, metrics=[LOSS], progress=False).scores[LOSS].per_example
    assert own == pytest.approx(math.log(POCKET.vocabulary))  # "four" is not in the list
    assert other == pytest.approx(math.log(2) / 3)


def test_several_models_have_the_mean_of_their_probabilities(tmp_path, pocket, blank):
    batch = batch_of(dataset(tmp_path / "data.tsv", "caption", 1))
    (target,) = [one.target for one in batch.examples]
    ids = torch.tensor([[0, *target]])
    with torch.no_grad():
        shares = [model(batch.inputs, ids)[0].softmax(-1) for model in (pocket, blank)]
    both = 0.25 * shares[0] + 0.75 * shares[1]
    wanted = -np.mean([math.log(float(both[place, token])) for place, token in enumerate([*target, 2])])
    found = negative_log_likelihood(Ensemble([pocket, blank], [0.25, 0.75]).eval(), batch)
    assert found == pytest.approx([wanted], rel=1e-4)


def test_asking_for_it_changes_no_answer(tmp_path, pocket):
    for task in ("vqa", "caption"):
        data = dataset(tmp_path / f"{task}.tsv", task, 3)
        quoted = data.task.metrics[0]
        alone, both = (
            evaluate(pocket, data, options=GenerationOptions(), metrics=names, progress=False)
            for names in ([quoted], [quoted, LOSS])
        )
        assert [one.loss for one in alone.predictions] == [None] * 3
        assert [one.answer for one in alone.predictions] == [one.answer for one in both.predictions]
        assert [one.score for one in alone.predictions] == [one.score for one in both.predictions]
        assert alone.scores[quoted].per_example.tolist() == both.scores[quoted].per_example.tolist()
        assert both.scores[LOSS].per_example.tolist() == [one.loss for one in both.predictions]


def test_weights_that_are_not_finite_have_no_likelihood(tmp_path, blank):
    broken = UnivalModel(POCKET).eval()
    broken.load_state_dict({name: tensor.clone() for name, tensor in blank.state_dict().items()})
    with torch.no_grad():
        broken.decoder.layer_norm.bias.fill_(math.nan)
    with pytest.raises(NotFinite, match=r"decoder\.layer_norm\.bias"):
        negative_log_likelihood(broken, batch_of(dataset(tmp_path / "data.tsv", "caption", 1)))
