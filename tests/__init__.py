"""The tests; folders mirror the packages, helper modules are imported as `tests.<package>.<module>`."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data"
