"""Every task in its published layout, with a full-size model at full resolution, within the memory of a laptop."""

import resource
import sys
from pathlib import Path

import pytest

from tests.unival_core.golden import SHARED
from tests.unival_core.made_rows import DISTINCT, LAYOUTS, cells
from unival_core.data.dataset import TaskDataset
from unival_core.data.table import TsvTable
from unival_core.evaluation import evaluate
from unival_core.model import UnivalModel
from unival_core.tasks import TASKS
from unival_core.vocabulary import Tokenizer

GIGABYTES = 12


@pytest.mark.slow
@pytest.mark.parametrize("task", DISTINCT)
def test_base_answers_every_task(tmp_path: Path, base: UnivalModel, task: str) -> None:
    """One row with its medium as base64, one by path. The weights are random, and so are the answers."""
    pytest.importorskip("av")
    tokenizer = Tokenizer.published(SHARED / "BPE")
    kind, lines = TASKS[task], []
    for row, folder in ((0, None), (1, tmp_path)):
        values = cells(task, row, folder)
        values["codes"] = " ".join(["7"] * base.config.code_side**2)
        lines.append("\t".join(values[name] for name in LAYOUTS[task].split()) + "\n")
    (tmp_path / "data.tsv").write_text("".join(lines))
    rows = TsvTable(tmp_path / "data.tsv", kind.columns, kind.selected_cols)
    answers = ("four", "dark red") if kind.asks == "question" else ()
    data = TaskDataset(kind, rows, tokenizer, base.config, answers=answers, resample=True)
    result = evaluate(base, data, batch_size=2, progress=False)
    assert [p.name for p in result.predictions] == ["row-0", "row-1"]
    assert set(result.scores) == set(kind.metrics)
    shapes = {"image": (3, kind.side, kind.side), "video": (3, kind.frames, 384, 384), "audio": (480_000,), None: None}
    assert (None if data[0].media is None else tuple(data[0].media.shape)) == shapes[kind.medium]
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    print(f"{task}: {result.seconds:.1f} s, at most {peak:.1f} GiB so far, said {result.predictions[0].answer!r:.60}")
    assert peak < GIGABYTES
