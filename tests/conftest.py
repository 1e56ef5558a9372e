"""Shared test set-up: one thread (small tensors lose time to thread hand-overs), no window system, and examples of
property tests that are the same in every run, however slow the machine."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")
