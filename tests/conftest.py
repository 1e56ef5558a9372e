"""Shared test set-up: one thread (small tensors lose time to thread hand-overs), no window system, and examples of
property tests that are the same in every run, however slow the machine."""

import os
import random
import signal

os.environ.setdefault("MPLBACKEND", "Agg")

if os.environ.get("FUZZ_SEED") == "random":  # here, so that parallel processes share it
    os.environ["FUZZ_SEED"] = str(random.randrange(2**32))

import hypothesis
import pytest
import torch

for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if (
        signal.getsignal(number) is signal.SIG_IGN
    ):  # of a job in the background, or under nohup: commands would inherit it
        signal.signal(number, handler)
torch.set_num_threads(1)
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.register_profile("random", derandomize=False, deadline=None, max_examples=500, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how to repeat what was drawn at random."""
    if "FUZZ_SEED" in os.environ:
        terminalreporter.write_line(f"to repeat: FUZZ_SEED={os.environ['FUZZ_SEED']}")
