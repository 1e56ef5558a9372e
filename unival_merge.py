"""The command `unival-merge`, whatever else is called merge, unival_core or experiments where it runs.

Python takes the first package of a name that it finds, which may lie in a folder on PYTHONPATH. The name of this module
is ours alone, so it knows where its own packages lie: beside it.
"""

from __future__ import annotations

import sys
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

HOME = Path(__file__).resolve().parent
PACKAGES = ("merge", "unival_core", "experiments")
NAME = "unival-merge"


def main() -> None:
    """Run the command line with the packages beside this file, and say on stderr what they are preferred to."""
    for package in PACKAGES:
        if other := shadow(package):
            first = next((at for at, entry in enumerate(sys.path) if Path(entry).resolve() in other.parents), 0)
            sys.path.insert(first, str(HOME))
            print(f"note: {other} is called {package} too: {HOME / package} is used", file=sys.stderr)
    try:
        from experiments.commands import main as run
    except ImportError:
        owners = packages_distributions()
        others = sorted({owner for package in PACKAGES for owner in owners.get(package, ())} - {NAME})
        if not others:
            raise
        print(
            f"error: {', '.join(others)} wrote over packages of {NAME} in {HOME}: install one of the two into an "
            "environment of its own",
            file=sys.stderr,
        )
        sys.exit(2)
    run()


def shadow(package: str) -> Path | None:
    """Return the folder or file that Python would import in place of our package, if any."""
    spec = find_spec(package)
    if spec is None:
        return None
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())  # a folder without __init__
    place = Path(places[0]).resolve()
    return None if HOME / package in place.parents or place == HOME / package else place


if __name__ == "__main__":
    main()
