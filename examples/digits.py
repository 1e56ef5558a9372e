"""Three experts of one network on handwritten digits, and the models between them, with BatchNorm done in each way.

A small network learns scikit-learn's digits, 1,797 scans of 8 x 8 pixels. From there three copies are finetuned: on the
digits as they are (upright), turned by a quarter (turned) and in white on black (inverted). The study asks how good the
weights between two of them are at the tasks of both, and how much of that hangs on the statistics of the BatchNorm
layers: averaged, or measured anew on inputs of the mixture or of the task.

    unival-merge study run examples/digits.py digits-study

or `python examples/digits.py`, which prints what is kept, in ten seconds (extra `world`). The models are trained once,
into examples/digits-experts; without that folder they are trained again.
"""

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import experiments
import merge

EXPERTS = Path(__file__).with_name("digits-experts")
LOOKS = {"upright": lambda x: x, "turned": lambda x: np.rot90(x, axes=(1, 2)), "inverted": lambda x: 1 - x}
PARTS = {"train": slice(0, 1000), "val": slice(1000, 1300), "test": slice(1300, 1797), "noisy": slice(1300, 1797)}


def make_model() -> nn.Module:
    layers = [nn.Flatten(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))


def digits(look: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels (n, 8, 8) and labels (n,) of a part of the digits; `noisy` is the test part with noise."""
    images, labels = load_digits(return_X_y=True)
    pixels = LOOKS[look](images.reshape(-1, 8, 8)[PARTS[part]] / 16)
    noise = np.random.default_rng(0).normal(0, 0.3, pixels.shape) if part == "noisy" else 0
    return (pixels + noise).astype(np.float32), labels[PARTS[part]]


def trained(name: str, looks: list[str], start: Path | None, steps: int) -> Path:
    """Return the file of a model trained on digits in some looks, from another one; it is made unless it is there."""
    path = EXPERTS / f"{name}.safetensors"
    if path.exists():
        return path
    pixels, labels = (
        torch.tensor(np.concatenate(part)) for part in zip(*(digits(look, "train") for look in looks), strict=True)
    )
    torch.set_num_threads(1)  # as fast for a model so small, and the same numbers everywhere
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make_model()
        if start is not None:
            model.load_state_dict(merge.load_checkpoint(start))
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(steps):
            batch = torch.randint(len(pixels), (64,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(pixels[batch]), labels[batch]).backward()
            optimizer.step()
    EXPERTS.mkdir(exist_ok=True)
    return merge.save_checkpoint(model, path, overwrite=True)


pretrained = trained("pretrained", [*LOOKS], None, 60)
study = experiments.Study(
    "digits",
    make_model,
    experts={look: trained(look, [look], pretrained, 300) for look in LOOKS},
    tasks={look: experiments.tasks.classification({part: digits(look, part) for part in PARTS}) for look in LOOKS},
    pretrained=pretrained,
    splits=("val", "test", "noisy"),
    batchnorm=("average", "recalibrate:mixture", "recalibrate:task"),
    question="Do experts of one network for digits in three looks share their weights?",
)

if __name__ == "__main__":
    kept = experiments.run(study, "digits-study").summary().query("task == 'mean over tasks'")
    print(kept[["mixture", "task", "split", "method", "point", "retention", "lo", "hi"]].to_string(index=False))
