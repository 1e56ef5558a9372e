"""An extension of griffe: examples in docstrings (`>>> `) are shown as code, without the marks for doctest."""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"(?m)^(?P<indent> *)>>> .*(?:\n(?P=indent)(?!\s*$).+)*")


def shown(text: str) -> str:
    """Put fences around the examples of a docstring."""

    def fenced(match: re.Match[str]) -> str:
        indent = match["indent"] if len(match["indent"]) < 4 else ""
        lines = [re.sub(r"\s*# doctest: .*", "", line).removeprefix(match["indent"]) for line in match[0].splitlines()]
        return "\n".join(indent + line for line in ("```pycon", *lines, "```"))

    return EXAMPLE.sub(fenced, text)


class Examples(griffe.Extension):
    """Rewrite every docstring once it is read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = shown(obj.docstring.value)
