"""The interpolation study at setup base on made files of the published layout and full size: memory and time.

    python benchmarks/base_setup.py --bpe FOLDER [--folder DIR] [--rows 4]

Makes three checkpoints of 0.25B random parameters (the pretrained model, a VQA and a captioning expert, half precision,
with the nested entries of training files) and tab-separated files of a few rows, then runs one pair at two ratios, its
ends and the pretrained model. FOLDER holds encoder.json, vocab.bpe and dict.txt of the published vocabulary.
"""

from __future__ import annotations

import argparse
import base64
import io
import pickle
import resource
import shutil
import tempfile
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from experiments.grid.engines.local import evaluate
from experiments.grid.grid import Grid, run_cells
from experiments.unival.published import CHECKPOINTS, BaseSetup
from experiments.unival.studies import Choice, MixtureStudy
from experiments.unival.subject import UnivalSubject
from unival_core.config import CONFIGS, replace
from unival_core.model import UnivalModel

CONFIG = replace(CONFIGS["base"], audio=None)
STUDY = MixtureStudy(
    name="one pair",
    question="Does a study at setup base fit this machine?",
    source="",
    experts={"vqa": "vqa", "caption": "caption"},
    mixtures=(("vqa", "caption"),),
    points=4,
    shifts=False,
)
ROWS = {
    "vqa_data/vqa_val.tsv": "{id}\t{id}\twhich digit is red?\t1.0|!+four\tdigit\t{image}\n",
    "caption_data/caption_test.tsv": "{id}\t{id}\ta red four&&one red digit\tdigit\t{image}\n",
}


def make_files(folder: Path, bpe: Path, rows: int) -> None:
    """Checkpoints and data, once."""
    for seed, name in enumerate(("pretrained", "vqa", "caption")):
        file = folder / "checkpoints" / CHECKPOINTS[name]
        if file.exists():
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(seed)
        state = {k: v.half() if v.is_floating_point() else v for k, v in UnivalModel(CONFIG).state_dict().items()}
        torch.save({"args": None, "cfg": {"model": Namespace(arch="unival_base")}, "model": state}, file)
    shutil.copytree(bpe, folder / "checkpoints" / "BPE", dirs_exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (rows, 480, 640, 3), dtype=np.uint8)
    for name, layout in ROWS.items():
        file = folder / "data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(layout.format(id=i, image=jpeg(pixels[i])) for i in range(rows)))
    (folder / "data/vqa_data/trainval_ans2label.pkl").write_bytes(pickle.dumps({"four": 0, "red": 1, "dark red": 2}))


def jpeg(pixels: np.ndarray) -> str:
    """A media column."""
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG")
    return base64.urlsafe_b64encode(data.getvalue()).decode()


def main() -> None:
    """Make the files, run the study, print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bpe", type=Path, required=True)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--rows", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = options.folder or Path(made)
        make_files(folder, options.bpe, options.rows)
        grid = Grid(STUDY.name, UnivalSubject(BaseSetup(folder, folder / "checkpoints", folder / "data")))
        began = time.perf_counter()
        print(run_cells(grid, STUDY.cells(Choice("base")), folder, evaluate))
        usage = resource.getrusage(resource.RUSAGE_SELF)
        print(f"{time.perf_counter() - began:.0f} s, peak {usage.ru_maxrss / 2**20:.1f} GiB (making the files too)")


if __name__ == "__main__":
    main()
