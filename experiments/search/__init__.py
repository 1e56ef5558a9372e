"""Search of merging coefficients: ask a method for points, evaluate what is new, tell it the scores."""

from experiments.search.driver import History, search
from experiments.search.methods import METHODS
from experiments.search.space import OBJECTIVES, Space, Trial

__all__ = ["METHODS", "OBJECTIVES", "History", "Space", "Trial", "search"]
