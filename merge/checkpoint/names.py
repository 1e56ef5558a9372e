"""Other names for an input's tensors: rules that strip, add or replace parts of names.

A rule is "FROM=TO". Without a star FROM is a prefix: "module.=" strips it from the names that begin so, "=module." adds
it to all. With stars FROM is the whole name, and every star of TO is what the star of the same number stands for:
"*._orig_mod.*=*.*" takes a part out of names' middles, "*.gamma=*.weight" changes their ends. A star is the shortest
text that fits, the last star the rest. Rules follow each other: the second sees the names that the first has made.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from merge.errors import MergeError


def renamed_by(rule: str, name: str) -> str | None:
    """Give the name that a rule makes of this one, None where the rule does not fit it.

    >>> renamed_by("module.=", "module.encoder.weight"), renamed_by("*._orig_mod.*=*.*", "layers._orig_mod.0.weight")
    ('encoder.weight', 'layers.0.weight')

    Raises MergeError for what is no rule.
    """
    before, after = _sides(rule)
    if "*" not in before:
        return after + name.removeprefix(before) if name.startswith(before) else None
    first, *inner, last = before.split("*")
    if not (name.startswith(first) and name.endswith(last) and len(name) >= len(first) + len(last)):
        return None
    at, end = len(first), len(name) - len(last)
    stars: list[str] = []
    for literal in inner:  # the leftmost place of every part: no way back is ever needed
        found = name.find(literal, at, end)
        if found < 0:
            return None
        stars.append(name[at:found])
        at = found + len(literal)
    stars.append(name[at:end])
    head, *tails = after.split("*")
    return head + "".join(star + tail for star, tail in zip(stars, tails, strict=True))


def _sides(rule: str) -> tuple[str, str]:
    before, equals, after = rule.partition("=")
    if not equals or before == after:
        raise MergeError(
            f"rename={rule!r}: must be 'FROM=TO', as 'module.=' to strip a prefix; the two sides must differ"
        )
    if before.count("*") != after.count("*"):
        raise MergeError(f"rename={rule!r}: both sides need as many stars: each stands for the same text")
    return before, after


def new_names(names: Iterable[str], rules: Sequence[str], where: str) -> dict[str, str]:
    """Give the new name of every name, by rules in turn. `where` is what errors call the checkpoint.

    Raises MergeError for what is no rule and for two names that become one.
    """
    found = {name: name for name in names}
    for rule in rules:
        _sides(rule)
        for name, now in found.items():
            new = renamed_by(rule, now)
            found[name] = now if new is None else new
    taken: dict[str, str] = {}
    for name, new in found.items():
        if not new or taken.setdefault(new, name) != name:
            both = f"{taken[new]} and {name} both become {new}" if new else f"{name} becomes an empty name"
            raise MergeError(f"{where}: rename {', '.join(rules)}: {both}")
    return found


def idle_rules(names: Sequence[str], rules: Sequence[str]) -> list[str]:
    """Give the rules that fit no name."""
    idle: list[str] = []
    for rule in rules:
        news = [renamed_by(rule, name) for name in names]
        if all(new is None for new in news):
            idle.append(rule)
        names = [name if new is None else new for name, new in zip(names, news, strict=True)]
    return idle
