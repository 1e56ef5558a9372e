"""Classification in a study: scores by hand, BatchNorm inputs, digests that redo rows, processes."""

import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import experiments
from experiments import StudyError
from experiments.tasks import classification
from experiments.tasks.labels import marked
from tests.experiments.made_study import inputs, make_model, weights


def data(**changes):
    """Labels of the sign of the first column, by split."""
    found = {split: (inputs(split).double().numpy(), (inputs(split)[:, 0] > 0).long()) for split in ("train", "test")}
    return found | changes


def made(task, **changes):
    given = {"experts": {"up": weights(1), "down": weights(2)}, "splits": "test", "points": 3}
    return experiments.Study("signs", make_model, tasks={"up": task}, **{**given, **changes})


def run(study, folder, **options):
    return experiments.run(study, folder, progress=False, **options)


def test_scores_are_those_of_a_plain_loop(tmp_path):
    results = run(made(classification(data(), batch_size=16, metrics=("accuracy", "nll"))), tmp_path)
    model = make_model().eval()
    for row in results.rows[results.rows["method"] == "single"].to_dict("records"):
        model.load_state_dict(weights(1 if row["point"] == "1.00 up" else 2))
        with torch.no_grad():
            logits = torch.cat([model(part) for part in inputs("test").split(16)])
        labels = (inputs("test")[:, 0] > 0).long()
        nll = nn.functional.cross_entropy(logits, labels, reduction="none")
        wanted = (logits.argmax(1) == labels).float() if row["metric"] == "accuracy" else nll
        assert np.array_equal(results.scores(row), wanted.double().numpy())
        assert (row["unit"], row["higher_is_better"]) == (
            ("", True) if row["metric"] == "accuracy" else ("nats", False)
        )


def test_changed_data_redo_their_rows_and_no_others(tmp_path):
    splits = ("val", "test")
    given = {"val": (inputs("val"), [0, 1] * 20), "test": (inputs("test"), [0, 1] * 20)}
    assert run(made(classification(given), splits=splits), tmp_path).ran.evaluated == 6
    assert run(made(classification(dict(given)), splits=splits), tmp_path).ran.evaluated == 0
    more = classification(given, metrics=("accuracy", "nll"))
    assert len(run(made(more, splits=splits), tmp_path).rows.query("metric == 'nll'")) == 6
    given["test"] = (inputs("test"), [1, 0] * 20)
    assert run(made(classification(given), splits=splits), tmp_path).ran.evaluated == 3


def test_inputs_of_split_train_are_what_batchnorm_is_measured_on(tmp_path):
    task = classification(data(), expert="up")
    assert torch.equal(torch.cat(task.inputs()), inputs("train").double())
    study = made(task, batchnorm=("average", "recalibrate:task"))
    results = run(study, tmp_path)
    assert results.rows["batchnorm"].tolist() == ["average", "average", "average", "recalibrate:task"]
    less = classification(data(train=(inputs("x"), [0] * 40)), expert="up")
    assert run(made(less, batchnorm=("average", "recalibrate:task")), tmp_path).ran.evaluated == 1
    assert classification({"test": data()["test"]}).inputs is None


def test_another_process_would_give_the_same_rows(tmp_path):
    task = classification(data())
    sent = pickle.loads(pickle.dumps(task))
    assert sent.score.digest("test") == task.score.digest("test")
    rows = [run(made(one), tmp_path / str(n)).rows.set_index("key")["value"] for n, one in enumerate((task, sent))]
    assert rows[0].equals(rows[1])


def test_labels_at_many_places_and_yes_or_no():
    logits = torch.tensor([[[9.0, 0.0], [9.0, 0.0], [0.0, 9.0]]])  # (1, 3 places, 2 classes)
    labels = torch.tensor([[0, 1, -100]])
    assert marked(logits, labels)[0].tolist() == [0.5]
    assert marked(logits.movedim(-1, 1), labels)[0].tolist() == [0.5]
    right, loss = marked(torch.tensor([[2.0], [-1.0]]), torch.tensor([1, 1]))
    assert right.tolist() == [1, 0]
    assert loss.tolist() == pytest.approx([math.log1p(math.exp(-2)), math.log1p(math.exp(1))])


@pytest.mark.parametrize(
    ("logits", "labels", "error"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), "there is a label 3, and the model has logits of 3 classes"),
        (torch.zeros(2, 3), torch.tensor([0.0, 1.0]), "labels are float32: give whole numbers"),
        (torch.zeros(2, 3), torch.tensor([0, 1, 2]), r"logits of shape \[2, 3\] do not fit labels of shape \[3\]"),
        (torch.zeros(2), torch.tensor([0, 2]), r"logits of shape \[2\] do not fit"),
    ],
)
def test_what_does_not_fit_is_one_line(logits, labels, error):
    with pytest.raises(StudyError, match=error):
        marked(logits, labels)


def test_the_door_and_unknown_metrics():
    assert experiments.tasks.classification is classification
    with pytest.raises(StudyError, match="no metric 'f1': choose of accuracy, nll"):
        classification({}, metrics="f1")
    with pytest.raises(StudyError, match="classification: batch_size=0: give 1 or more"):
        classification(data(), batch_size=0)
