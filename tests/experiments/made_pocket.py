"""A pocket made in a second: a world of a dozen rows, and weights that only look like those of experts."""

import json
import shutil
from pathlib import Path

import torch

from experiments.study.points import Expert
from experiments.unival.pocket.backbone import fresh_model
from experiments.unival.pocket.data import world_tokenizer
from experiments.unival.setups import PocketSetup
from experiments.unival.studies import MixtureStudy
from unival_core.checkpoint import save_model
from unival_core.config import CONFIGS
from unival_core.model import UnivalModel
from unival_core.vocabulary import TOKENIZER_KEY

PRETRAINED = Expert("pretrained", "", "pretrained")
TINY = MixtureStudy(  # three points between two experts
    name="tiny",
    question="?",
    source="here",
    experts={"vqa": "vqa", "entailment": "entailment"},
    mixtures=(("vqa", "entailment"),),
    points=3,
    shifts=False,
)


def make_pocket(folder: Path, world: Path, tasks: tuple[str, ...], seeds: tuple[int, ...] = (0,)) -> Path:
    """A folder with a copy of a world, the pretrained model, and vanilla experts of some tasks by seed."""
    folder.mkdir(parents=True)
    (folder / "pocket.json").write_text(json.dumps({"preset": "micro", "seed": 0}))
    copied(world, folder / "world")
    model = fresh_model(CONFIGS["pocket"], 0)
    write(folder, 0, PRETRAINED, model)
    for seed in seeds:
        for number, task in enumerate(tasks):
            write(folder, seed, Expert(task, task, "vanilla"), moved(model, 10 * seed + number))
    return folder


def moved(model: UnivalModel, seed: int) -> UnivalModel:
    """A copy with other weights and BatchNorm statistics."""
    other = UnivalModel(model.config).eval()
    other.load_state_dict(model.state_dict())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in other.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator)
                tensor.mul_(1 + noise if "running" in name else 1 + 0.4 * (noise - 0.5))
    return other


def write(folder: Path, seed: int, expert: Expert, model: UnivalModel) -> Path:
    """Puts weights where an expert's are looked for."""
    file = PocketSetup(folder).source(expert, seed).path
    file.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = world_tokenizer(folder / "world", model.config)
    return save_model(model, file, metadata={TOKENIZER_KEY: tokenizer.to_json()}, overwrite=True)


def copied(home: Path, folder: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(home, folder))
