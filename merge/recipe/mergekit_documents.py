"""Several recipes in one YAML file, of which some take the results of others, as mergekit-multi runs them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from merge.errors import MergeError, MergeWarning, shortened
from merge.recipe.recipe import Input, Recipe

Reader = Callable[[Any, Mapping[str, Input]], Recipe]


def result_of(file: Path, documents: Sequence[object], read: Reader) -> Recipe:
    """Give the recipe that no other takes: the one without a name, or the only one whose name no other has for a model.

    `read` makes a recipe of a document and of the inputs that names of documents stand for. Order does not matter.
    Raises MergeError for names that come twice, circles, and where it is not clear which recipe is meant.
    """
    named: dict[str, Any] = {}
    for document in documents:
        given: Mapping[str, Any] = cast("Mapping[str, Any]", document) if isinstance(document, Mapping) else {}
        name = str(given.get("name") or given.get("out_path") or "")
        if name in named:
            twice = f"two documents are called {shortened(name)}" if name else "two documents have no name"
            raise MergeError(f"{twice}: the others take a result by its name, and the last may have none")
        named[name] = document
    made = _Made(file, named, read)
    recipes = {name: made.recipe(name) for name in named}
    free = [name for name in named if name not in made.taken]
    if "" not in named and len(free) > 1:
        raise MergeError(f"no document takes {' or '.join(map(shortened, free))}: the result has to be one of them")
    if "" in named and len(free) > 1:
        unused = ", ".join(name for name in free if name)
        warnings.warn(MergeWarning(f"{file}: no document takes {unused}: it is not made"), stacklevel=2)
    return recipes["" if "" in named else free[0]]


class _Made(Mapping[str, Input]):
    """The results of documents by name, each read when it is asked for."""

    def __init__(self, file: Path, documents: Mapping[str, Any], read: Reader):
        self.taken: set[str] = set()
        self._file, self._documents, self._read = file, documents, read
        self._recipes: dict[str, Recipe] = {}
        self._open: list[str] = []

    def recipe(self, name: str) -> Recipe:
        """Read a document. Raises MergeError where it takes its own result."""
        if name in self._open:
            way = " -> ".join([*self._open[self._open.index(name) :], name])
            raise MergeError(f"the document {shortened(name)} is made of itself: {way}")
        if name not in self._recipes:
            self._open.append(name)
            try:
                self._recipes[name] = self._read(self._documents[name], self)
            except MergeError as error:
                where = f"the document {shortened(name)}: " if name else "the document without a name: "
                raise MergeError(f"{error}" if "document" in str(error) else f"{where}{error}") from error
            self._open.pop()
        return self._recipes[name]

    def __getitem__(self, name: str) -> Input:
        if not name or name not in self._documents:
            raise KeyError(name)
        self.taken.add(name)
        return Input(name, self._file, recipe=self.recipe(name))

    def __contains__(self, name: object) -> bool:
        return bool(name) and name in self._documents

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._documents if name)

    def __len__(self) -> int:
        return sum(map(bool, self._documents))
