"""A task of the harness where lm-eval is not installed."""

import sys

import pytest

from experiments import StudyError
from experiments.tasks import lm_harness


def test_what_to_install_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(StudyError, match=r"lm_harness needs lm-eval .*: pip install 'unival-merge\[harness\]'"):
        lm_harness("hellaswag", "tokenizer")
