"""What docs/world.md says of a world's sizes."""

import runpy

from experiments.unival.world.tasks import SIZES
from tests import ROOT


def test_the_page_has_the_sizes_there_are():
    counts = runpy.run_path(str(ROOT / "docs" / "write_world.py"))["counts"]
    page = (ROOT / "docs" / "world.md").read_text()
    for name in SIZES:
        assert counts(name) in page, "docs/world.md is not regenerated: run python docs/write_world.py"
