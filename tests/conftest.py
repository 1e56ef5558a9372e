"""Shared test set-up: one thread (small tensors lose time to thread hand-overs), no window system."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")

import torch

torch.set_num_threads(1)
