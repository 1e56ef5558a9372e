# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Merge and look
#
# Two experts of one small network, on handwritten digits as they are and turned by a quarter, from `examples/digits.py`
# (scikit-learn's scans; trained on the first run, in a few seconds). What is in a checkpoint, whether two can be
# merged, what a merge makes of them, and how good the models between them are.

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import torch
from digits import EXPERTS, digits, make_model

import merge

sorted(path.name for path in EXPERTS.glob("*.safetensors"))

# %% [markdown]
# ## What is in a file
# Opening reads the header alone; a tensor is read when it is asked for.

# %%
upright, turned, pretrained = (
    merge.open_checkpoint(EXPERTS / f"{name}.safetensors") for name in ("upright", "turned", "pretrained")
)
upright

# %%
merge.inspect(upright)

# %% [markdown]
# ## Will it work?
# The doctor looks at names, shapes, dtypes and values, and says what it finds; see the findings' page for each code.

# %%
merge.doctor([upright, turned], base=pretrained)

# %% [markdown]
# ## Merge
# The ratio is the share of the second: 0.4 is 0.60 upright + 0.40 turned. A dict of tensors comes back.

# %%
merged = merge.interpolate(upright, turned, ratio=0.4)
merge.diff(merged, upright)

# %% [markdown]
# Any method does the same, by its name in `merge.METHODS`:

# %%
merge.METHODS["ties"]

# %%
ties = merge.merge_with("ties", {"upright": upright, "turned": turned}, base=pretrained, density=0.2)
task_vector = merge.TaskVector.between(upright, pretrained)
task_vector

# %% [markdown]
# ## The line between the two
# A live path writes the weights of any ratio into the model itself: the same bits as a file, without one.


# %%
def accuracy(model, look):
    images, labels = (torch.tensor(part.copy()) for part in digits(look, "val"))
    with torch.no_grad():
        return (model.eval()(images).argmax(1) == labels).float().mean().item()


model, ratios = make_model(), merge.ratios(11)
scores = {look: [] for look in ("upright", "turned")}
with merge.LinearPath(model, upright, turned) as path:
    for ratio in ratios:
        path.set(ratio)
        for look, values in scores.items():
            values.append(accuracy(model, look))

figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
for look, values in scores.items():
    axis.plot(ratios, values, marker="o", label=f"{look} digits")
axis.set(xlabel="share of turned", ylabel="accuracy (val)", title="between two experts")
_ = axis.legend()
# %% [markdown]
# BatchNorm statistics are no weights: averaged, they fit no model between the two. A few batches of inputs mend that.

# %%
model.load_state_dict(merge.interpolate(upright, turned, 0.5))
before = {look: accuracy(model, look) for look in scores}
inputs = torch.cat([torch.tensor(digits(look, "train")[0].copy()) for look in scores])
merge.recalibrate_batchnorm(model, [inputs])
{look: f"{before[look]:.2f} averaged, {accuracy(model, look):.2f} recalibrated" for look in scores}

# %% [markdown]
# ## Keep it
# A merge written from files has its recipe beside it, and `unival-merge run` makes it again.

# %%
recipe = merge.Recipe(
    "interpolate", [merge.Input("upright", upright.path), merge.Input("turned", turned.path)], {"ratio": 0.4}
)
with TemporaryDirectory() as folder:
    recorded = merge.run(recipe, Path(folder) / "merged.safetensors")
recipe
