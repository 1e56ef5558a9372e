"""Merging methods: a method is a pure function, one entry of `METHODS` and one row in the tests.

The table names its functions by "module:name", so that methods are listed and described without importing torch. Its
entries lie in `merge/methods/entries/`, one file for the groups that belong together.
"""

from __future__ import annotations

from merge.methods.entries.agreement import AGREEMENT
from merge.methods.entries.lines import LINES
from merge.methods.entries.matrices import MATRICES
from merge.methods.entries.running import RUNNING
from merge.methods.entries.task_vectors import TASK_VECTORS
from merge.methods.entries.whole import WHOLE
from merge.methods.method import Mergekit, Method, Parameter

METHODS: dict[str, Method] = {**LINES, **RUNNING, **TASK_VECTORS, **MATRICES, **AGREEMENT, **WHOLE}

__all__ = ["METHODS", "Mergekit", "Method", "Parameter"]
