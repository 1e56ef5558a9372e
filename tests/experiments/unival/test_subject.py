"""What rows of UnIVAL are keyed by: the keys of rows that exist, to the last digit."""

from pathlib import Path

import numpy as np

from experiments.grid.grid import Grid
from experiments.unival.published import BaseSetup
from experiments.unival.setups import CONFIDENCE, LOSS
from experiments.unival.studies import Choice, MixtureStudy
from experiments.unival.subject import UnivalSubject, scored, shortened
from unival_core.metrics import Scores

# By cell the keys by metric, as they have been in all files so far.
KEYS = [
    "404e6f6a61a94d55",  # 1.00 pretrained (pretrained, single) vqa
    "57a06e418989cf20 64731a6caee0aa99",  # 1.00 pretrained (pretrained, single) grounding
    "3ec9bd25131e92b3",  # 1.00 vqa (vanilla, single) vqa
    "338e01f46871920e c404454706faf90a",  # 1.00 vqa (vanilla, single) grounding
    "787acc07fe4edaea",  # 1.00 grounding (vanilla, single) vqa
    "195bb00d31a53b4c 1fc3b517b581d339",  # 1.00 grounding (vanilla, single) grounding
    "1166cab59c2fa80a",  # middle (vanilla, interpolate) vqa
    "7731e3f37c082f81 26222c807e2a08fe",  # middle (vanilla, interpolate) grounding
    "70a24da3d6a617f2",  # middle (vanilla, interpolate, BatchNorm from:vqa) vqa
    "218257ed93cb1248 d80d8610bf32d080",  # middle (vanilla, interpolate, BatchNorm from:vqa) grounding
    "d6968b5d299402d1",  # middle (vanilla, interpolate, BatchNorm from:grounding) vqa
    "ac18c040bbf20ef3 52265fb80cae9e47",  # middle (vanilla, interpolate, BatchNorm from:grounding) grounding
    "ec5b9e1e44d2b5ab",  # middle (vanilla, interpolate, BatchNorm recalibrate:mixture) vqa
    "d9675c69bb376f29 2231491dfe0ecd49",  # middle (vanilla, interpolate, BatchNorm recalibrate:mixture) grounding
    "9e6b84ba870bbf71",  # middle (vanilla, interpolate, BatchNorm recalibrate:task) vqa
    "0f112f97b534f4b3 7fa2a1afec397bd9",  # middle (vanilla, interpolate, BatchNorm recalibrate:task) grounding
    "482900b64c98bbbf",  # middle (vanilla, ensemble) vqa
    "564484adf696d017 90cb87b7cfdf0b84",  # middle (vanilla, ensemble) grounding
]
STUDY = MixtureStudy(
    name="tiny",
    question="?",
    source="here",
    experts={"vqa": "vqa", "grounding": "grounding"},
    mixtures=(("vqa", "grounding"),),
    points=3,
    ensembles=("vanilla",),
    shifts=False,
    metrics={"grounding": ("Acc@0.5", "Acc@0.5 small")},
)


class Named(Grid):
    """With digests that are words."""

    def inputs(self, cell, seed):
        return {name: f"weights of {cell.point.experts[name].id} {seed}" for name in cell.point.held}

    def data_digest(self, task, split):
        return f"{task}/{split}"


def test_keys_are_those_of_old_rows(monkeypatch):
    monkeypatch.setattr(BaseSetup, "data_digest", lambda _, task, split: f"{task}/{split}")
    monkeypatch.setattr(BaseSetup, "areas", lambda _: (1024.0, 9216.0))  # of those days
    grid = Named("tiny", UnivalSubject(BaseSetup(Path(), Path("checkpoints"), Path("data")), limit=7))
    cells = STUDY.cells(Choice("base", batchnorm=("all",)))
    keys = [grid.keys(cell, 1) for cell in cells]
    beside = [[name for name in own if name in (LOSS, CONFIDENCE)] for own in keys]
    assert [" ".join(key for name, key in own.items() if name not in (LOSS, CONFIDENCE)) for own in keys] == KEYS
    half = Named("tiny", grid.subject, precision="bf16")
    assert not {*keys[0].values()} & {*half.keys(cells[0], 1).values()}
    assert beside == [[LOSS, CONFIDENCE] if cell.task == "vqa" else [LOSS] for cell in cells]


def test_rows_keep_what_models_tell_of_themselves_in_nine_binary_digits():
    values = np.array([0.0, 1.0, 0.75, 1e-9, 3.14159, 12345.678])
    short = shortened(values)
    assert short[:3].tolist() == [0.0, 1.0, 0.75]
    assert np.abs(short - values).max() / values.max() <= 1 / 512
    assert (np.abs(short[3:] / values[3:] - 1) <= 1 / 512).all()
    assert np.array_equal(short.astype(np.float32), short)
    told = scored(LOSS, Scores(9.0, values, len(values)), "")
    assert (told.value, told.unit, told.higher_is_better) == (short.mean(), "nats", False)
    assert scored("accuracy", Scores(0.3, values, len(values)), "").per_example is values
