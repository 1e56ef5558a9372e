"""Ready tasks for studies of any model: data by split in, a `Task` with its score, unit and direction out.

>>> import torch, experiments
>>> points = {"val": (torch.eye(2), [0, 1]), "test": (torch.eye(2), [1, 0])}
>>> experiments.tasks.classification(points).score(torch.nn.Identity(), "val")
{'accuracy': [1.0, 1.0]}
"""

from experiments.tasks.harness import lm_harness
from experiments.tasks.labels import classification
from experiments.tasks.texts import perplexity
from experiments.tasks.torchmetric import torchmetric

__all__ = ["classification", "lm_harness", "perplexity", "torchmetric"]
