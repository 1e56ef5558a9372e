"""Perplexity: nats per token by hand, windows, texts of many lengths."""

import itertools
import math
import pickle

import pytest
import torch
from torch import nn

from experiments import StudyError
from experiments.tasks import perplexity
from experiments.tasks.texts import longest_of, windows


def letters(text):
    return [ord(letter) - ord("a") for letter in text]


class Bigram(nn.Module):
    """A model whose logits of the next letter depend on the letter before it."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(26, 26, generator=torch.Generator().manual_seed(0)))

    def forward(self, tokens):
        return self.table[tokens]

    def nats(self, text):
        table, tokens = self.table.detach().log_softmax(1), letters(text)
        return -sum(float(table[a, b]) for a, b in itertools.pairwise(tokens)) / (len(tokens) - 1)


class Output:
    """What models of transformers return, in short."""

    def __init__(self, logits):
        self.logits = logits


TEXTS = ["abc", "hello", "zz", "interpolation"]


@pytest.mark.parametrize("options", [{}, {"batch_size": 3}, {"max_length": 4}, {"max_length": 2, "batch_size": 1}])
def test_nats_per_token_of_every_text(options):
    task, model = perplexity({"test": TEXTS}, letters, **options), Bigram()
    with torch.no_grad():
        assert task.score(model, "test") == pytest.approx([model.nats(text) for text in TEXTS])
    assert (task.metric, task.unit, task.higher_is_better) == ("nll", "nats per token", False)


def test_a_uniform_model_has_the_vocabulary_for_its_perplexity():
    model = nn.Sequential(nn.Embedding(26, 4), nn.Linear(4, 26))
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    with torch.no_grad():
        assert perplexity({"test": TEXTS}, letters).score(model, "test") == pytest.approx([math.log(26)] * 4)


@pytest.mark.parametrize("length", range(2, 12))
@pytest.mark.parametrize("limit", [2, 3, 4, 7])
def test_windows_foretell_every_token_once(length, limit):
    found: list[int] = []
    for tokens, count in windows(range(length), limit):
        assert len(tokens) <= limit
        assert count < len(tokens)
        found += tokens[-count:]
    assert found == [*range(1, length)]


def test_outputs_with_logits_tokenizers_and_digests():
    class Named:
        def encode(self, text):
            return type("Encoding", (), {"ids": letters(text)})()

    model = Bigram()
    wanted = model.nats("hello")

    class Wrapped(nn.Module):
        def forward(self, tokens):
            return Output(model(tokens))

    with torch.no_grad():
        assert perplexity(lambda split: [split], Named()).score(Wrapped(), "hello") == pytest.approx([wanted])
    task = pickle.loads(pickle.dumps(perplexity({"test": TEXTS}, letters)))
    assert task.score.digest("test") == perplexity({"test": [*TEXTS]}, letters).score.digest("test")
    assert task.score.digest("test") != perplexity({"test": TEXTS[1:]}, letters).score.digest("test")
    assert task.score.digest("test") != perplexity({"test": TEXTS}, letters, max_length=3).score.digest("test")
    capitals = perplexity({"test": TEXTS}, lambda text: [0, *letters(text)])
    assert task.score.digest("test") != capitals.score.digest("test")


def test_what_cannot_be_foretold_is_one_line():
    with pytest.raises(StudyError, match=r"text 1 of test \('b'\) has 1 tokens: there is none to foretell"):
        perplexity({"test": ["ab", "b"]}, letters).score(Bigram(), "test")
    with pytest.raises(StudyError, match=r"logits of shape \[1, 5\] for tokens \[1, 5\]"):
        perplexity({"test": ["hello"]}, letters).score(nn.Identity(), "test")
    with pytest.raises(StudyError, match="perplexity: max_length=1: give 2 or more"):
        perplexity({"test": ["ab"]}, letters, max_length=1)


def test_the_limit_of_a_model_inside_another_one():
    model = nn.Sequential(Bigram())
    assert longest_of(model) is None
    model[0].config = type("Config", (), {"max_position_embeddings": 4})
    assert longest_of(model) == 4
