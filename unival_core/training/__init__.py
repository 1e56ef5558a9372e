"""Training: recipes, options, optimiser, averages, losses, processes, saved state; `unival_core.train` runs it."""

from unival_core.training.optim import learning_rate, make_optimizer, set_rate
from unival_core.training.options import RewardOptions, TrainOptions
from unival_core.training.prepare import choose
from unival_core.training.recipes import BACKBONE, DEFAULTS, DRAWING, JOINT, REWARD, REWARDS, STAGES, Stage, options_for
from unival_core.training.state import RunFolder

__all__ = [
    "BACKBONE", "DEFAULTS", "DRAWING", "JOINT", "REWARD", "REWARDS", "STAGES", "RewardOptions", "RunFolder", "Stage",
    "TrainOptions", "choose", "learning_rate", "make_optimizer", "options_for", "set_rate",
]  # fmt: skip
