"""How a point is called wherever shares are shown. It needs no torch, so that rows are read without it."""

from __future__ import annotations

import math
from collections.abc import Mapping


def share_label(parts: Mapping[str, float]) -> str:
    """Print shares in the one way of rows, axes and messages, in the order given; what has share 0 is left out.

    Two decimals, or as many as tell the shares apart from rounded ones, at most four.

        >>> share_label({"vqa": 0.2, "caption": 0.8})
        '0.20 vqa + 0.80 caption'
        >>> share_label({"vqa": 1.0, "caption": 0.0})
        '1.00 vqa'
    """
    named = [(name, float(share)) for name, share in parts.items() if share != 0]
    digits = next((d for d in (2, 3) if all(math.isclose(s, round(s, d), abs_tol=1e-9) for _, s in named)), 4)
    text = " + ".join(f"{share:.{digits}f} {name}" for name, share in named)
    return text.replace("+ -", "- ") if named else "nothing"
