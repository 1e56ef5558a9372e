"""Metrics of torchmetrics: one number a split, as the metric itself would say."""

import pickle

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import experiments
from experiments import StudyError
from experiments.tasks import torchmetric
from tests.experiments.made_study import inputs, make_model, weights

pytestmark = pytest.mark.filterwarnings("ignore")


class Share:
    """What is asked of a metric, without torchmetrics: the share of a class among the answers."""

    higher_is_better = True

    def __init__(self, of):
        self.of = of
        self.reset()

    def reset(self):
        self.found, self.all = 0, 0

    def to(self, device):
        return self

    def update(self, logits, target):
        self.found += int((logits.argmax(1) == self.of).sum())
        self.all += len(target)

    def compute(self):
        return torch.tensor(self.found / self.all)


def loader(split):
    x = inputs(split)
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=16)


def test_a_number_of_a_whole_split():
    model = make_model().eval()
    task = torchmetric(Share(1), loader)
    with torch.no_grad():
        wanted = float((model(inputs("test")).argmax(1) == 1).float().mean())
        assert task.score(model, "test") == pytest.approx({"Share": wanted})
        assert task.score(model, "test") == pytest.approx({"Share": wanted})  # nothing of the first is left
    assert task.score.digest("test") == torchmetric(Share(1), loader).score.digest("test")
    assert len({torchmetric(Share(of), loader).score.digest(split) for of in (0, 1) for split in ("a", "val")}) == 4
    with pytest.raises(StudyError, match="list does not say whether higher is better: give higher_is_better="):
        torchmetric([], loader)


def test_rows_of_a_metric_and_of_a_collection(tmp_path):
    torchmetrics = pytest.importorskip("torchmetrics")
    f1 = torchmetrics.F1Score("multiclass", num_classes=2, average="macro")
    both = torchmetrics.MetricCollection(
        {"f1": f1.clone(), "error": torchmetrics.HammingDistance("multiclass", num_classes=2)}
    )
    study = experiments.Study(
        "signs",
        make_model,
        {"up": weights(1), "down": weights(2)},
        {"up": torchmetric(f1, loader, name="f1"), "down": torchmetric(both, {"test": loader("test")})},
        splits="test",
        points=3,
    )
    results = experiments.run(pickle.loads(pickle.dumps(study)), tmp_path, progress=False)
    assert results.ran.failed == 0
    assert results.rows["n"].eq(0).all()
    assert dict(zip(results.rows["metric"], results.rows["higher_is_better"], strict=True)) == {
        "f1": True,
        "error": False,
    }
    model = make_model().eval()
    model.load_state_dict(weights(1))
    x = inputs("test")
    wanted = f1(model(x), (x[:, 0] > 0).long())
    row = results.rows.query("point == '1.00 up' and task == 'up'")
    assert row["value"].tolist() == [float(wanted)]
    assert experiments.run(study, tmp_path, progress=False).ran.evaluated == 0
    micro = torchmetrics.F1Score("multiclass", num_classes=2, average="micro")
    assert torchmetric(micro, loader).score.digest("test") != torchmetric(f1, loader).score.digest("test")


def test_what_is_no_single_number_is_one_line():
    torchmetrics = pytest.importorskip("torchmetrics")
    each = torchmetrics.F1Score("multiclass", num_classes=2, average="none")
    with pytest.raises(StudyError, match="f1 computes 2 numbers: choose an average of them"):
        torchmetric(each, loader, name="f1").score(make_model().eval(), "test")
    with pytest.raises(StudyError, match="MeanMetric does not say whether higher is better: give higher_is_better="):
        torchmetric(torchmetrics.MeanMetric(), loader)
    task = torchmetric(
        torchmetrics.MeanSquaredError(), {"test": (inputs(), inputs()[:, 0])}, unit="m2", output=lambda out: out[:, 0]
    )
    assert (task.metric, task.unit, task.higher_is_better) == ("MeanSquaredError", "m2", {"MeanSquaredError": False})
    model = make_model().eval()
    with torch.no_grad():
        mean = ((model(inputs())[:, 0] - inputs()[:, 0]) ** 2).mean()
        assert task.score(model, "test")["MeanSquaredError"] == pytest.approx(float(mean))
