"""Patterns of common layers, by module name; join those of a network with `|`. Groups may be named freely.

Widths that a residual connection adds must have one group: so the blocks of one stream are given the same name.
"""

from __future__ import annotations

from collections.abc import Sequence

Patterns = dict[str, str]


def linear(name: str, leaving: str, entering: str, *, bias: bool = True, kernel: int = 0) -> Patterns:
    """Describe a linear layer, or a convolution with `kernel` spatial axes.

    >>> linear("fc1", "hidden", "width")
    {'fc1.weight': 'hidden width', 'fc1.bias': 'hidden'}
    """
    return {f"{name}.weight": " ".join((leaving, entering, *"_" * kernel))} | (
        {f"{name}.bias": leaving} if bias else {}
    )


def norm(name: str, group: str, *, running: bool = False) -> Patterns:
    """Describe a layer norm or, with `running` statistics, a batch norm. Both treat all units alike."""
    keys = ("weight", "bias", *(("running_mean", "running_var") if running else ()))
    return {f"{name}.{key}": group for key in keys}


def chain(names: Sequence[str], entering: str = "_", leaving: str = "_") -> Patterns:
    """Linear layers one behind the other; each but the last has a group with its own name.

    >>> chain(["0", "2"])
    {'0.weight': '0 _', '0.bias': '0', '2.weight': '_ 0', '2.bias': '_'}
    """
    patterns: Patterns = {}
    for name in names:
        following = leaving if name == names[-1] else name
        patterns |= linear(name, following, entering)
        entering = following
    return patterns


def attention(name: str, heads: str, entering: str, leaving: str, memory: str = "") -> Patterns:
    """Multi-head attention with `q_proj`, `k_proj`, `v_proj` and `out_proj`: heads, and the channels within each.

    Queries and keys share an order within every head, values and the columns of the output another. `memory` is the
    group of what keys and values are made of, by default `entering`.
    """
    look, content = f"({heads} {name}.keys)", f"({heads} {name}.values)"
    memory = memory or entering
    return (
        linear(f"{name}.q_proj", look, entering)
        | linear(f"{name}.k_proj", look, memory)
        | linear(f"{name}.v_proj", content, memory)
        | linear(f"{name}.out_proj", leaving, content)
    )


def bottleneck(name: str, entering: str, leaving: str, *, dims: int, grouped: bool, downsample: bool) -> Patterns:
    """Describe a residual block of three bias-free convolutions with batch norms (ResNet-50 and deeper, ResNeXt).

    `grouped`: the middle convolution works in groups, which can be exchanged as wholes, and their channels within.
    """
    cut = f"({name}.groups {name}.in)" if grouped else f"{name}.in"
    out = f"({name}.groups {name}.out)" if grouped else f"{name}.out"
    patterns = linear(f"{name}.conv1", cut, entering, bias=False, kernel=dims) | norm(f"{name}.bn1", cut, running=True)
    patterns |= linear(f"{name}.conv2", out, f"{name}.in", bias=False, kernel=dims)
    patterns |= norm(f"{name}.bn2", out, running=True)
    patterns |= linear(f"{name}.conv3", leaving, out, bias=False, kernel=dims)
    patterns |= norm(f"{name}.bn3", leaving, running=True)
    if downsample:
        patterns |= linear(f"{name}.downsample.0", leaving, entering, bias=False, kernel=dims)
        patterns |= norm(f"{name}.downsample.1", leaving, running=True)
    return patterns
