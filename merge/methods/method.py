"""What a merging method is: a pure function over the tensors of one name, and all that other places say of it."""

from __future__ import annotations

import functools
import html
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from merge.methods.shortcuts import never, no_input

if TYPE_CHECKING:
    from torch import Tensor

Tensors: TypeAlias = "Sequence[Tensor]"


@dataclass(frozen=True)
class Parameter:
    """A method's parameter.

    Attributes:
        help: one line.
        default: value where the recipe gives none; None means that it must be given.
        low, high: the range; a coefficient may leave it with `extrapolate`.
        each: one value per input (a list in the order of the inputs, or a mapping by their names).
        simplex: the values per input sum to 1 (unless `extrapolate`); equal shares where none are given.
        relative: of the values per input only the proportions count, unless a parameter `normalize` is false.
        kind: float, int, bool, str for one of the words alone, or tuple for globs or parts of tensors' names.
        input: it is the name of one of the inputs, or its place from 0; the method gets the place, -1 for none.
        words: what it may be in the place of a number, such as "auto".
        example: a usual value of a parameter without default, for examples, benchmarks and tests.
    """

    help: str
    default: float | bool | str | None = None
    low: float = float("-inf")
    high: float = float("inf")
    each: bool = False
    simplex: bool = False
    relative: bool = False
    kind: type = float
    input: bool = False
    words: tuple[str, ...] = ()
    example: float | None = None

    @property
    def required(self) -> bool:
        """Whether a recipe must give it."""
        return self.default is None and not self.simplex

    @property
    def usual(self) -> str:
        """The default in words: "0.15", "true", "equal" shares, or "required"."""
        if self.default is None:
            return "equal" if self.simplex else "required"
        if isinstance(self.default, str):
            return self.default or "none"
        return str(self.default).lower() if self.kind is bool else f"{self.default:g}"

    @property
    def range(self) -> str:
        """The values that it takes, in words, such as "0 to 1, sum 1"."""
        if self.kind is bool:
            return "true, false"
        if self.kind is tuple:
            return "globs or parts of names"
        if self.kind is str:
            return "an input's name" if self.input else ", ".join(self.words)
        bounds = f"{self.low:g} or more" if self.high == float("inf") else f"{self.low:g} to {self.high:g}"
        bounds = "any" if self.low == float("-inf") else bounds
        bounds = "".join(f"{word} or " for word in self.words) + bounds
        return ("whole, " if self.kind is int else "") + bounds + (", sum 1" if self.simplex else "")


@dataclass(frozen=True)
class Survey:
    """A look at the whole model before any tensor is merged.

    Attributes:
        code: `function(model) -> Surveyed`, or where it is, as "module:name" (see `merge.methods.survey`).
        of: the parameters that it depends on: points that agree in them share one survey.
    """

    code: str | Callable[..., Any]
    of: tuple[str, ...] = ()

    @functools.cached_property
    def function(self) -> Callable[..., Any]:
        """The function, imported when it is first asked for."""
        return imported(self.code)


@dataclass(frozen=True)
class Mergekit:
    """How mergekit writes a method, where its words are not ours.

    Attributes:
        each, whole: by mergekit's parameter, our name and mergekit's default (None: required): parameters of each
            model, and parameters of the whole merge.
        fixed: our parameters that mergekit has no word for.
        relative: the switch by which mergekit divides the weights by their sum before they mean what ours mean, and
            mergekit's default of it.
        base_first: mergekit's base is the first of our inputs.
        alone: mergekit takes one model only.
    """

    each: Mapping[str, tuple[str, Any]] = field(default_factory=dict[str, tuple[str, Any]])
    whole: Mapping[str, tuple[str, Any]] = field(default_factory=dict[str, tuple[str, Any]])
    fixed: Mapping[str, Any] = field(default_factory=dict[str, Any])
    relative: tuple[str, bool] | None = None
    base_first: bool = False
    alone: bool = False


@dataclass(frozen=True, repr=False)
class Method:
    """A merging method: an entry of `METHODS`, which is all that any other place knows of it.

    Attributes:
        code: `function(tensors, *, name, **parameters) -> Tensor`, or where it is, as "module:name". The tensors of one
            name, the base first where the method takes one, all in the computing dtype; pure. With `elementwise` it may
            be called on blocks of them, and takes `out`, a tensor to write the result into.
        summary: one sentence: what it does.
        formula: with X_i, or A and B, for the inputs.
        source: the paper or program, and where in it.
        parameters: by name.
        takes_base: the first tensor is the common ancestor's.
        elementwise: each element of the result depends on the same element of the inputs alone.
        inputs: least and greatest number of inputs besides the base.
        single: the index of the one input that these parameters mean (ratio 0 or 1), whose bytes are then copied:
            exact, and nothing leaks from the others. None where there is none (see `merge.methods.shortcuts`).
        lerp: whether with these parameters the function is one `torch.lerp`, which computes 16-bit tensors in float32
            and rounds once: they then need not be widened before.
        survey: a look at the whole model before any tensor is merged; what it finds comes as further parameters.
        shares: the coefficient of every input where parameters that are not called ratio, scale or weights say it.
        statistics: the second half of the inputs are statistics of the first (see `merge.tools.statistics`).
        edges: what happens at the edges (ties, zero vectors, vectors without a direction), for docs.
        group: the heading under which methods are listed.
        mergekit: how mergekit writes it, by mergekit's name.
        ordered: the inputs are checkpoints of one training run, in order: of experts of different tasks it is no merge.
        grid: by parameter the values worth trying where the best are looked for: at most six merges.
    """

    code: str | Callable[..., Tensor]
    summary: str
    formula: str
    source: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict[str, Parameter])
    takes_base: bool = False
    elementwise: bool = False
    inputs: tuple[int, int | None] = (2, None)
    single: Callable[[int, Mapping[str, Any]], int | None] = no_input
    lerp: Callable[[int, Mapping[str, Any]], bool] = never
    survey: Survey | None = None
    shares: Callable[[int, Mapping[str, Any]], Sequence[float]] | None = None
    statistics: bool = False
    edges: str = ""
    group: str = "other"
    mergekit: Mapping[str, Mergekit] = field(default_factory=dict[str, Mergekit])
    ordered: bool = False
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict[str, Sequence[Any]])

    def __repr__(self) -> str:
        return f"<Method: {self.summary} Inputs: {self.needs}; parameters: {', '.join(self.parameters) or 'none'}>"

    def _repr_html_(self) -> str:
        rows = [("formula", self.formula), ("inputs", self.needs), ("source", self.source)]
        rows += [(name, parameter.help) for name, parameter in self.parameters.items()]
        body = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in rows)
        return f"<table><caption>{html.escape(self.summary)}</caption>{body}</table>"

    @functools.cached_property
    def function(self) -> Callable[..., Tensor]:
        """The function, imported when it is first asked for: to look at methods needs no torch."""
        return imported(self.code)

    @property
    def needs(self) -> str:
        """The inputs in words, such as "base and 1 or more"."""
        low, high = self.inputs
        count = f"{low}" if low == high else f"{low} or more"
        return f"base and {count}" if self.takes_base else count


def imported(code: str | Callable[..., Any]) -> Callable[..., Any]:
    """Give a function, which may be given by where it is: "module:name"."""
    if callable(code):
        return code
    module, _, name = code.partition(":")
    return getattr(importlib.import_module(module), name)
