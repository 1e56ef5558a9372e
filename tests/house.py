"""The structure of the packages, read from their imports; `python -m tests.house` prints it.

A package is a few wings, from top to bottom; a file imports from wings below its own, or from files of its own wing
that do not import it. Between packages only doors are used: what `__all__` of a package, or of one of its wings,
offers.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from tests import ROOT

WINGS: dict[str, tuple[str, ...]] = {
    "merge": ("commands", "tools", "engine", "recipe", "plan", "methods", "checkpoint", "errors", "_version"),
    "unival_core": (
        *(
            "commands",
            "training",
            "permutations",
            "exporting",
            "answering",
            "drawing",
            "submission",
            "evaluation",
            "likelihood",
            "ensemble",
            "generation",
            "tasks",
            "data",
            "metrics",
        ),
        *(
            "image_codes",
            "checkpoint",
            "bart",
            "model",
            "computed",
            "encoders",
            "media",
            "attention",
            "decoder_cache",
            "decoding",
            "text",
            "vocabulary",
            "inputs",
        ),
        *("vocabulary", "settings", "inputs", "config", "errors"),
    ),
    "experiments": (
        "commands",
        "unival",
        "results",
        "searches",
        "pages",
        "statistics",
        "tasks",
        "grid",
        "study",
        "atomic",
        "errors",
    ),
}
BELOW = {"merge": (), "unival_core": ("merge",), "experiments": ("unival_core", "merge")}
ROOMS = {"__init__", "__main__"}  # of a package: they may look at everything in it


@cache
def modules() -> Mapping[str, Path]:
    """Every module of the packages by its dotted name; a folder's `__init__.py` has the folder's."""
    found: dict[str, Path] = {}
    for package in WINGS:
        for path in sorted((ROOT / package).rglob("*.py")):
            found[".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


def imports(path: Path) -> Iterator[tuple[str, str, int]]:
    """Every import of a file, wherever it stands: the module, the name taken from it ("" for itself), the line."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from ((item.name, "", node.lineno) for item in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative imports hide where a name comes from"
            yield from ((node.module or "", item.name, node.lineno) for item in node.names)


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def graph() -> Mapping[str, Mapping[str, int]]:
    """For every module the modules of its own package that it imports, with the line of the first import."""
    found: dict[str, dict[str, int]] = {}
    for module, path in modules().items():
        own = found[module] = {}
        for source, name, line in imports(path):
            target = f"{source}.{name}" if f"{source}.{name}" in modules() else source
            if target in modules() and target != module and package_of(target) == package_of(module):
                own.setdefault(target, line)
    return found


def package_of(module: str) -> str:
    """The package that a module lies in."""
    return module.split(".")[0]


def wing_of(module: str) -> str:
    """The wing that a module lies in, "" for a package's own `__init__` and `__main__`."""
    parts = module.split(".")
    return "" if len(parts) == 1 or parts[1] in ROOMS else parts[1]


@cache
def offered(module: str) -> frozenset[str]:
    """The names of a module's `__all__`; none where it has none."""
    return frozenset(getattr(importlib.import_module(module), "__all__", ()))


def climbs() -> list[str]:
    """Imports that go up, from a wing to one above it; and files that lie in no wing."""
    found = [
        f"{module} lies in no wing" for module in graph() if wing_of(module) not in ("", *WINGS[package_of(module)])
    ]
    for module, targets in graph().items():
        order, own = ("", *WINGS[package_of(module)]), wing_of(module)
        for target, line in targets.items():
            if own and {own, wing_of(target)} <= {*order} and order.index(wing_of(target)) < order.index(own):
                found.append(f"{module}:{line} imports {target}")
    return found


def circles() -> list[list[str]]:
    """Groups of modules that import each other, through whatever others (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for target in graph()[module]:
            if target not in index:
                visit(target)
            if target in stack:
                low[module] = min(low[module], low[target])
        if low[module] == index[module]:
            group = [stack.pop()]
            while group[-1] != module:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for module in graph():
        if module not in index and wing_of(module):
            visit(module)
    return found


def floors() -> dict[str, int]:
    """The floor of every module: 1 where it imports nothing of its package, else one above the highest it imports."""

    known: dict[str, int] = {}

    def floor(module: str) -> int:
        if module not in known:
            known[module] = 0  # where it comes back to itself there is a circle, and no floor
            known[module] = 1 + max((floor(target) for target in graph()[module] if wing_of(target)), default=0)
        return known[module]

    return {module: floor(module) for module in graph() if wing_of(module)}


def strangers() -> list[str]:
    """Imports from another package that are not downward, or take what its doors do not offer."""
    found: list[str] = []
    for module, path in modules().items():
        for source, name, line in imports(path):
            package = package_of(source)
            if package not in WINGS or package == package_of(module):
                continue
            place = f"{module}:{line} takes {name or 'itself'} of {source}"
            if package not in BELOW[package_of(module)]:
                found.append(f"{place}, a package above")
            elif source in modules() and source.count(".") <= 1 and (not name or name in offered(source)):
                if package == "merge" and source != "merge" and wing_of(module) != "commands":
                    found.append(f"{place}: merge has one door")
            else:
                found.append(f"{place}, which its __all__ does not offer")
    return found


def lines(paths: Sequence[Path]) -> int:
    """The number of lines of some files."""
    return sum(path.read_bytes().count(b"\n") for path in paths)


def main() -> None:
    """Print wings with their files, lines and floors, then circles and climbs."""
    high = floors()
    for package, order in WINGS.items():
        print(f"{package}: {lines([path for name, path in modules().items() if package_of(name) == package])} lines")
        for wing in order:
            own = [module for module in high if package_of(module) == package and wing_of(module) == wing]
            if own:
                reach = sorted({high[module] for module in own})
                told = f"floors {reach[0]} to {reach[-1]}" if len(reach) > 1 else f"floor {reach[0]}"
                size = lines([modules()[module] for module in own])
                print(f"    {wing:<14}{len(own):>4} files {size:>6} lines   {told}")
    print(f"circles: {len(circles())}")
    print("".join(f"    {' <-> '.join(group)}\n" for group in circles()), end="")
    for title, found in (("imports that climb", climbs()), ("imports past a door", strangers())):
        print(f"{title}: {len(found)}")
        print("".join(f"    {line}\n" for line in found), end="")


if __name__ == "__main__":
    main()
