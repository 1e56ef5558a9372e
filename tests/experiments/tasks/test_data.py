"""Data by split: what their digests tell apart, which batches they come in, what is refused."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from experiments import StudyError
from experiments.tasks.data import SAMPLED, Scored, batches_of, digest_of, halves, logits_of

X, Y = torch.arange(12.0).reshape(6, 2), torch.tensor([0, 1, 0, 1, 0, 1])


class Squares(Dataset):
    """A data set that makes its examples when it is asked."""

    def __init__(self, count):
        self.count, self.asked = count, 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.asked += 1
        return torch.tensor([float(index)]), index**2


def test_a_digest_is_that_of_the_values():
    same = [(X, Y), TensorDataset(X, Y), DataLoader(TensorDataset(X.clone(), Y), batch_size=4)]
    assert len({digest_of(data) for data in same}) == 1
    assert digest_of((X.numpy(), Y)) == digest_of((X.numpy().copy(), Y))
    other = X.clone()
    other[5, 1] += 1e-5
    assert digest_of((other, Y)) != digest_of((X, Y))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["ab", "c"], ["a", "bc"]),
        (["ab"], "ab"),
        ([1], [True]),
        ([[1], [2]], [[1, 2]]),
        ({"a": 1}, {"b": 1}),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.tensor(1.0), torch.tensor(2.0)),
        (torch.ones(2, dtype=torch.bfloat16), torch.full((2,), 2.0, dtype=torch.bfloat16)),
        (np.zeros(2), np.zeros(2, dtype=np.float32)),
        (np.array(["a", None], dtype=object), np.array(["a", "b"], dtype=object)),
    ],
)
def test_what_differs_has_another_digest(first, second):
    assert digest_of(first) == digest_of(first)
    assert digest_of(first) != digest_of(second)


def test_a_data_set_that_loads_its_examples_is_sampled():
    large = Squares(1000)
    assert digest_of(large) == digest_of(Squares(1000))
    assert large.asked == SAMPLED
    assert digest_of(large) != digest_of(Squares(1001))


@pytest.mark.parametrize("data", [(X, Y), TensorDataset(X, Y), [*zip(X, Y.tolist(), strict=True)]])
def test_batches(data):
    batches = [halves(batch) for batch in batches_of(data, 4)]
    assert [len(labels) for _, labels in batches] == [4, 2]
    assert torch.equal(torch.cat([inputs for inputs, _ in batches]), X)
    assert torch.equal(torch.cat([labels for _, labels in batches]), Y)
    few = [halves(batch)[0] for batch in batches_of(data, 4, most=3)]
    assert torch.equal(torch.cat(few), X[::2])


def test_a_loader_keeps_its_batches_and_mappings_their_names():
    loader = DataLoader(TensorDataset(X, Y), batch_size=5)
    assert [len(labels) for _, labels in batches_of(loader, 2)] == [5, 1]
    inputs, labels = halves(next(batches_of(({"ids": X, "mask": Y.numpy()}, Y), 2)))
    assert sorted(inputs) == ["ids", "mask"]
    assert torch.equal(inputs["mask"], labels)
    assert halves({"pixels": X, "labels": Y}) == ({"pixels": X}, Y)
    first, second = halves((X, X, Y))[0]
    assert first is X
    assert second is X


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        (lambda: Scored("perplexity", ["a"]), "perplexity: give data by name of a split, .* this is a list"),
        (lambda: Scored("perplexity", {"val": 1, "test": 2}).of("x"), "no data of split 'x': it has val, test"),
        (lambda: [*batches_of((X, Y[:3]), 2)], "arrays of one split have 6, 3 examples"),
        (lambda: [*batches_of(iter([X]), 2)], "gone through again and again"),
        (lambda: halves({"x": 1}), "a batch of x: labels are looked for under labels or label"),
        (lambda: halves(X), "a batch is a Tensor: give inputs and labels"),
        (lambda: logits_of("yes"), "the model returned a str"),
    ],
)
def test_what_does_not_fit_is_one_line(ask, error):
    with pytest.raises(StudyError, match=error):
        ask()
