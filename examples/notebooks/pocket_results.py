# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # The pocket study, read from its rows
#
# `results/` holds the rows of UnIVAL's studies at pocket scale: every score of every merged model, of five training
# seeds, with the scores of single examples. Nothing is trained or evaluated here.

# %%
from pathlib import Path

import experiments

ROOT = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "results").is_dir())
results = experiments.open_results(ROOT / "results" / "pocket-interpolation")
print(repr(results))
results.rows.groupby(["task", "split"])["value"].agg(["count", "min", "max"])

# %% [markdown]
# ## Curves between two experts
# One line a kind of expert; the band is a 95 % interval over seeds and examples.

# %%
results.curves("vqa+caption")

# %% [markdown]
# ## Both skills at once

# %%
results.front("vqa+caption")

# %% [markdown]
# ## What merged models keep
# Retention is the merged model's score over that of the task's own expert, on the same seed and split.

# %%
kept = results.summary()
kept[kept["task"] == "mean over tasks"][["mixture", "split", "method", "point", "retention", "lo", "hi"]].head(12)

# %% [markdown]
# ## A question of your own
# Rows are a pandas frame. The scores along one line, as means over seeds and in their stored units:

# %%
rows = results.rows[(results.rows["split"] == "test") & (results.rows["experts"] == "vanilla")]
line = rows[
    rows["method"].isin(["single", "interpolate"]) & rows["shares"].map(lambda shares: {*shares} <= {"vqa", "caption"})
]
means = line[line["task"].isin(["vqa", "caption"])].groupby(["metric", "point"])["value"].mean().unstack("metric")
means.round(3)
