"""Write the table of sizes in docs/world.md from worlds made on the spot: python docs/write_world.py after a change.

It takes about a minute and 500 MB of a temporary folder.
"""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

from experiments.unival.world.build import make_world
from experiments.unival.world.tables import read_world
from experiments.unival.world.tasks import SIZES

PAGE = Path(__file__).with_name("world.md")
HEAD = "| size | files | rows | MB | CPU seconds |\n|---|---|---|---|---|\n"


def counts(name: str) -> str:
    """Give the cells of a size that its plan tells: files and rows."""
    rows = [number for splits in SIZES[name].rows.values() for number in splits.values()]
    return f"| {name} | {len(rows)} | {sum(rows):,} |"


def line(name: str) -> str:
    """Make a world of a size, and give its line of the table."""
    with TemporaryDirectory() as folder:
        began = time.process_time()
        files = read_world(make_world(Path(folder) / name, size=name)).files.values()
        return f"{counts(name)} {sum(file.bytes for file in files) / 1e6:.0f} | {time.process_time() - began:.0f} |\n"


if __name__ == "__main__":
    text = PAGE.read_text()
    before, _, after = text.partition(HEAD)
    rest = after[after.index("\n\n") + 1 :]
    PAGE.write_text(before + HEAD + "".join(map(line, ("micro", "quick", "full"))) + rest)
