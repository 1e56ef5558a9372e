"""Computing layers twice to hold less: activations inside them are made again in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from unival_core.attention import DecoderLayer, EncoderLayer
from unival_core.decoder_cache import LayerMemory, Readers
from unival_core.encoders.audio import ConvBlock
from unival_core.encoders.image import Bottleneck
from unival_core.model import UnivalModel


def recompute_layers(model: UnivalModel) -> None:
    """Let transformer layers and blocks of the media networks keep only what enters them while training."""
    for module in model.modules():
        if isinstance(module, (EncoderLayer, Bottleneck, ConvBlock)):
            module.forward = _twice(module)
        elif isinstance(module, DecoderLayer):
            module.forward = _decoder_twice(module)


def _twice(module: nn.Module) -> Any:
    once = module.forward

    def forward(*inputs: Any) -> Any:
        if not (module.training and torch.is_grad_enabled()):
            return once(*inputs)
        # A residual block works in place on what enters it only behind its first convolution, so inputs stay whole.
        contexts = lambda: (nullcontext(), _kept_statistics(module))  # noqa: E731
        return checkpoint(once, *inputs, use_reentrant=False, context_fn=contexts)

    return forward


def _decoder_twice(module: DecoderLayer) -> Any:
    once = module.forward

    def forward(x: Tensor, memory: LayerMemory, bias: Tensor, readers: Readers, cross_bias: Tensor) -> Tensor:
        if not (module.training and torch.is_grad_enabled()):
            return once(x, memory, bias, readers, cross_bias)

        def fresh(x: Tensor, keys: Tensor, values: Tensor, bias: Tensor, cross_bias: Tensor) -> Tensor:
            return once(x, LayerMemory(keys, values), bias, readers, cross_bias)  # a layer appends to its memory

        inputs = x, memory.cross_keys, memory.cross_values, bias, cross_bias
        return cast(Tensor, checkpoint(fresh, *inputs, use_reentrant=False))

    return forward


@contextmanager
def _kept_statistics(module: nn.Module) -> Iterator[None]:
    """Let batch norms of the module normalise as ever but do not count the second pass as another batch."""
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    own = [dict(norm.named_buffers(recurse=False)) for norm in norms]
    for norm, buffers in zip(norms, own, strict=True):
        norm._buffers.update({name: buffer.clone() for name, buffer in buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, own, strict=True):
            norm._buffers.update(buffers)
