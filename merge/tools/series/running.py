"""The average of a model while it is trained, to the bit that of the checkpoints that it would have left."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import torch
from torch import Tensor, nn

from merge.checkpoint.open import specs
from merge.checkpoint.save import save_checkpoint
from merge.checkpoint.source import Source, StateDict, load_checkpoint, opened, whole
from merge.engine.kernel import nonfinite, refuse_nonfinite, rounded, to_compute
from merge.engine.memory import merge_with
from merge.errors import MergeError
from merge.methods.running import move
from merge.plan.checks import leave
from merge.plan.policy import Policy, policy_of
from merge.plan.units import Unit, by_name, plan
from merge.recipe.parameters import method_named
from merge.tools.series.kinds import averaging
from merge.tools.series.steps import Series


class RunningAverage:
    """An average of a model's weights that is kept while it is trained.

        >>> model = nn.Linear(1, 1, bias=False)
        >>> average = RunningAverage(model, "ema", decay=0.5)
        >>> for value in (1.0, 2.0, 4.0):  # steps of a training
        ...     _ = nn.init.constant_(model.weight, value)
        ...     average.update(model)
        >>> average.state_dict()["weight"].item()
        2.75

    The first `update` counts as the first checkpoint: making one counts nothing. Sums are in float64, twice the memory
    of a float32 model, and rounded once; tensors that are equal in all updates come out to the bit. The result has the
    bits of `merge.series` over files that are saved at every update.

    Args:
        model: what will be averaged (a module or a state dict), whose names and shapes updates must have.
        kind: "uniform" (stochastic weight averaging, arXiv 1803.05407), "ema" with `decay`, "wma" (weights rise by
            one); with `last` any kind of `merge.series` but "between".
        last: average the latest so many alone (LAWA, arXiv 2209.14981), of which copies are kept.
        shape: of kind "wsm".
        policy: as of merges: BatchNorm's counters are the largest, other integers must not change.
        device: where the sums are kept; by default where the model is.

    Raises MergeError for what a merge of such checkpoints would refuse.
    """

    def __init__(
        self,
        model: Source | None = None,
        kind: str = "uniform",
        *,
        decay: float | None = None,
        last: int | None = None,
        shape: str | None = None,
        policy: Policy | None = None,
        device: str | torch.device | None = None,
    ):
        if kind == "between" or (kind == "wsm" and last is None):
            raise MergeError(f"kind {kind} {'needs last=...' if kind == 'wsm' else 'is for files: use merge.series'}")
        if last is not None and (type(last) is not int or last < 1):
            raise MergeError(f"last={last!r}: must be a whole number of updates, 1 or more")
        self.kind, self.count = kind, 0
        self._options = {"decay": decay, "shape": shape}
        self._method = method_named(averaging(kind, Series((Path(),)), self._options)[0])
        self._policy, self._device = policy_of(policy), device
        self._window: deque[dict[str, Tensor]] | None = None if last is None else deque(maxlen=last)
        self._units: list[Unit] = []
        self._names: list[str] = []
        self._held: dict[str, Tensor] = {}
        if model is not None:
            self._begin(opened(model, name="model"))

    def __repr__(self) -> str:
        last = "" if self._window is None else f", last {self._window.maxlen}"
        return f"RunningAverage({self.kind}{last}: {self.count} updates)"

    def update(self, model: Source) -> None:
        """Take the model's weights of now into the average. Raises MergeError, and then nothing was changed."""
        state = opened(model, name="model")
        if not self._units:
            self._begin(state)
        self._check(state)
        self.count += 1
        if self._window is not None:
            self._window.append(load_checkpoint(state))
            return
        rate = self._rate()
        for unit in self._units:
            value = whole(state, unit.name).detach()
            if unit.kind == "merge":
                (value,) = to_compute(unit, [value], self._method, self._policy)
                if self.count == 1:
                    self._held[unit.name] = value.to(self._device, torch.float64, copy=True)
                else:
                    total = self._held[unit.name]
                    move(total, value.to(total.device), rate)
            elif self.count == 1:
                self._held[unit.name] = value.to(self._device, copy=True)
            elif unit.kind == "maximum":
                held = self._held[unit.name]
                held.copy_(torch.maximum(held, value.to(held.device)))

    def state_dict(self) -> dict[str, Tensor]:
        """Give the average in the dtypes of the model, tied tensors as one; nothing is shared with later updates.

        Raises MergeError before the first update, and for infinite and NaN values that the policy does not allow.
        """
        if not self.count:
            raise MergeError("nothing was averaged yet: call update(model) first")
        if self._window is not None:
            found = Series(tuple(Path(str(i)) for i in range(len(self._window))))
            method, parameters = averaging(self.kind, found, self._options)
            return merge_with(method, list(self._window), policy=self._policy, **parameters)
        result: dict[str, Tensor] = {}
        for unit in self._units:
            value = self._held[unit.name]
            if unit.kind == "merge":
                value = rounded(torch.view_as_complex(value) if unit.element.is_complex else value, unit.dtype)
                refuse_nonfinite(unit, nonfinite(value), self._policy)
            result.update(dict.fromkeys(unit.names, value.clone() if value is self._held[unit.name] else value))
        return {name: result[name] for name in self._names}

    def copy_to(self, model: nn.Module) -> None:
        """Write the average into a model's own parameters and buffers. Raises MergeError where names do not fit."""
        own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
        made = self.state_dict()
        if differing := sorted(own.keys() ^ made.keys()):
            raise MergeError(f"the model and the average do not have the same names: {', '.join(differing[:6])}")
        with torch.no_grad():
            for name, value in made.items():
                own[name].copy_(value)

    def save(self, output: str | Path, *, like: str | Path | None = None, overwrite: bool = False) -> Path:
        """Write the average as `merge.save_checkpoint` does; `like` gives the other files of a folder."""
        told = {"format": "pt", "average": f"{self.kind} of {self.count} updates"}
        return save_checkpoint(self.state_dict(), output, overwrite=overwrite, like=like, metadata=told)

    def _rate(self) -> float:
        """How far the update that is being counted moves the average."""
        if self.kind == "ema":
            return 1.0 if self.count == 1 else 1 - float(self._options["decay"] or 0)
        return 2 / (self.count + 1) if self.kind == "wma" else 1 / self.count

    def _begin(self, state: StateDict) -> None:
        """Note what is to be done with every tensor. Raises MergeError for findings that refuse."""
        self._units = plan([state, state], ["model", "average"], self._policy)
        self._names = list(by_name(self._units, [state]))
        self._specs = {name: (spec.element, spec.shape) for name, spec in specs(state).items()}

    def _check(self, state: StateDict) -> None:
        """Raise MergeError where names, shapes, dtypes or integers are others than before."""
        now = {name: (spec.element, spec.shape) for name, spec in specs(state).items()}
        if differing := sorted(now.keys() ^ self._specs.keys()):
            raise MergeError(f"the model has other tensors than before: {', '.join(differing[:6])}")
        for name, (element, shape) in self._specs.items():
            if now[name] != (element, shape):
                told = f"{now[name][0]} {list(now[name][1])}"
                raise MergeError(f"{name} is {told} in the model and was {element} {list(shape)} before")
        for unit in self._units if self._held else ():
            held = self._held[unit.name]
            if unit.kind == "copy" and not unit.why and not torch.equal(held, state[unit.name].to(held.device)):
                raise MergeError(
                    f"{unit.name} is {unit.element} and has changed: it is never merged; {leave(unit.name)}"
                )
