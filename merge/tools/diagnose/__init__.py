"""Look at checkpoints before merging them: what they hold, how they differ, whether a merge is likely to work."""

from __future__ import annotations

from merge.tools.diagnose.difference import Diff, diff
from merge.tools.diagnose.findings import Finding
from merge.tools.diagnose.inspection import Inspection, inspect
from merge.tools.diagnose.report import Report, doctor

__all__ = ["Diff", "Finding", "Inspection", "Report", "diff", "doctor", "inspect"]
