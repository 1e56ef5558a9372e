"""Which tasks belong together, as the entries of TASKS say."""

from unival_core import TASKS


def families() -> dict[str, tuple[str, ...]]:
    """List the tasks of every family by its name, each in its place."""
    found: dict[str, list[tuple[int, str]]] = {}
    for name, task in TASKS.items():
        if task.family is not None:
            found.setdefault(task.family.name, []).append((task.family.place, name))
    return {family: tuple(name for _, name in sorted(members)) for family, members in sorted(found.items())}
