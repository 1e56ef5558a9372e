"""What parameters mean: one input alone, a single `torch.lerp`, shares of inputs that have no weights.

Each function takes the number of tensors (with the base) and the method's parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# -- one input alone: the index of its tensor, None where several are mixed ------------------------------------------


def no_input(count: int, parameters: Mapping[str, Any]) -> int | None:
    """No parameters mean one input."""
    return None


def by_ratio(count: int, parameters: Mapping[str, Any]) -> int | None:
    """Ratio 0 is the first input, 1 the second."""
    return {0.0: 0, 1.0: 1}.get(parameters["ratio"])


def one_input(count: int, parameters: Mapping[str, Any], *, relative: bool = False) -> int | None:
    """All weight on one input (of any size if weights are relative); the inputs are the last of `count` tensors."""
    weights = list(parameters["weights"])
    holders = [index for index, weight in enumerate(weights) if weight != 0]
    if len(holders) == 1 and (relative or parameters.get("normalize") or weights[holders[0]] == 1):
        return count - len(weights) + holders[0]
    return None


def by_scale(count: int, parameters: Mapping[str, Any]) -> int | None:
    """Scale 0 is the base; one expert at scale 1 is that expert."""
    shares = [parameters["scale"] * weight for weight in parameters["weights"]]
    if not any(shares):
        return 0
    return 1 if shares == [1.0] else None


def by_no_scale(count: int, parameters: Mapping[str, Any]) -> int | None:
    """Scale 0 is the base."""
    return 0 if parameters["scale"] == 0 else None


def by_factor(count: int, parameters: Mapping[str, Any]) -> int | None:
    """Scale 0 is the base, the only expert at scale 1 that expert."""
    return {0.0: 0, 1.0: 1 if count == 2 else None}.get(parameters["scale"])


def by_density(count: int, parameters: Mapping[str, Any]) -> int | None:
    """No weight at all is the base; all of one whole task vector is its expert."""
    weights, density = parameters["weights"], parameters["density"]
    active = [index for index, weight in enumerate(weights) if weight != 0 and density[index] > 0]
    if parameters["scale"] == 0 or not active:
        return 0
    first = active[0]
    if len(active) > 1 or density[first] < 1 or ("epsilon" in parameters and parameters["epsilon"][first] > 0):
        return None
    share = 1.0 if parameters.get("normalize") and not parameters.get("largest") else weights[first]
    return first + 1 if parameters["scale"] * share == 1 else None


def by_distance(count: int, parameters: Mapping[str, Any]) -> int | None:
    """Distance 0 is the base."""
    return 0 if parameters["t"] == 0 else None


def last_or_first(count: int, parameters: Mapping[str, Any]) -> int | None:
    """Decay 0 is the last input, 1 the first."""
    return 0 if count == 1 else {0.0: count - 1, 1.0: 0}.get(parameters["decay"])


def first_of_three(count: int, parameters: Mapping[str, Any]) -> int | None:
    """Scale 0 is the first."""
    return 0 if parameters["scale"] == 0 else None


# -- a single lerp ---------------------------------------------------------------------------------------------------


def never(count: int, parameters: Mapping[str, Any]) -> bool:
    """More than one lerp, whatever the parameters."""
    return False


def always(count: int, parameters: Mapping[str, Any]) -> bool:
    """Give the lerp, whatever the parameters."""
    return True


def two_inputs(count: int, parameters: Mapping[str, Any]) -> bool:
    """Give the lerp that an average of two is, if no weight is negative and their sum is 1."""
    weights = [weight for weight in parameters["weights"] if weight != 0]
    return len(weights) == 2 and min(weights) > 0 and math.isclose(sum(weights), 1.0, rel_tol=1e-12)


def one_expert(count: int, parameters: Mapping[str, Any]) -> bool:
    """Give the lerp that one task vector added to the base is."""
    return len(parameters["weights"]) == 1


# -- shares of inputs that have no weights of their own: by the number of inputs and the parameters ------------------


def by_decay(count: int, parameters: Mapping[str, Any]) -> list[float]:
    """The shares of an exponential moving average, whose first has what is left."""
    decay = parameters["decay"]
    return [decay ** (count - 1), *((1 - decay) * decay ** (count - k) for k in range(2, count + 1))]


def of_difference(count: int, parameters: Mapping[str, Any]) -> list[float]:
    """One of the first, and plus and minus the scale of the others."""
    return [1.0, parameters["scale"], -parameters["scale"]]
