# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # A study of your own model
#
# Two experts and a function that scores a model: every point between them on every task and split, with intervals,
# curves and findings. Here with a small network on scikit-learn's digits; change `model`, `experts` and `score`.

# %%
import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import experiments

folder = Path(tempfile.mkdtemp())
images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
images = images.float().reshape(-1, 8, 8) / 16
LOOKS = {"upright": lambda x: x, "turned": lambda x: x.rot90(dims=(1, 2))}
SPLITS = {"train": slice(0, 900), "val": slice(900, 1300), "test": slice(1300, None), "noisy": slice(1300, None)}


def data(task, split):
    inputs = LOOKS[task](images[SPLITS[split]])
    if split == "noisy":
        inputs = inputs + 0.3 * torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0))
    return inputs.flatten(1), labels[SPLITS[split]]


def model():
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10))


# %% [markdown]
# ## Experts
# Yours are files, most likely. These are finetuned from one ancestor that knows both looks a little.


# %%
def trained(tasks, start=None, updates=60):
    torch.manual_seed(0)
    net = model()
    if start is not None:
        net.load_state_dict(start)
    inputs, targets = (torch.cat(parts) for parts in zip(*(data(task, "train") for task in tasks), strict=True))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.001)
    for _ in range(updates):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs), targets).backward()
        optimizer.step()
    return net.state_dict()


pretrained = trained(LOOKS, updates=150)
experts = {look: trained([look], pretrained) for look in LOOKS}

# %% [markdown]
# ## The study
# A scoring function gets a model in evaluation mode and the name of a split, and returns one number an example.


# %%
def score(task, net, split):
    inputs, targets = data(task, split)
    return net(inputs).argmax(1) == targets


study = experiments.Study(
    name="digits",
    model=model,
    experts=experts,
    pretrained=pretrained,
    tasks={look: lambda net, split, look=look: score(look, net, split) for look in LOOKS},
    splits=("val", "test", "noisy"),  # val chooses, test reports, any other is shifted data
    methods=("interpolate", ("ties", {"density": [0.3]})),
)
results = experiments.run(study, folder, points=11)
results

# %% [markdown]
# ## What it says

# %%
results.summary().query("task == 'mean over tasks'")[["split", "method", "point", "retention", "lo", "hi", "interval"]]

# %%
print(*results.findings(), sep="\n")

# %%
results.curves("upright+turned")

# %%
results.front("upright+turned")

# %% [markdown]
# The best point was chosen on val. It becomes a checkpoint with its recipe, and the rows a page.

# %%
print(results.best("upright+turned"))
results.report().name, results.save_best(folder / "best.safetensors", "upright+turned").name

# %% [markdown]
# Rows are a frame, and scores by example are kept: anything else is yours to compute.

# %%
results.rows[["task", "split", "point", "method", "value", "n"]].head()
