"""Bottleneck residual networks (arXiv 1512.03385, 1611.05431) in two or three dimensions, strided on the 3 x 3."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unival_core.config import ResNetConfig

CONVOLVE = {2: F.conv2d, 3: F.conv3d}
_CONV: dict[int, type[nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
_NORM: dict[int, type[nn.Module]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_POOL: dict[int, type[nn.Module]] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}


def normalised(x: Tensor, conv: nn.Module, norm: nn.Module) -> Tensor:
    """Run a bias-free convolution and the batch norm behind it.

    In evaluation the norm is a scale and a shift, which go into the kernel: one pass over the features less. They are
    folded anew in every call, as weights may change in place at any time.
    """
    conv, norm = cast(nn.Conv2d, conv), cast(nn.BatchNorm2d, norm)
    if norm.training or norm.running_var is None or norm.running_mean is None:
        return norm(conv(x))
    scale = norm.weight.float() * (norm.running_var.float() + norm.eps).rsqrt()
    shift = norm.bias.float() - norm.running_mean.float() * scale
    kernel = conv.weight * scale.view(-1, *[1] * (conv.weight.dim() - 1))
    convolve = CONVOLVE[x.dim() - 2]
    return convolve(
        x, kernel.to(conv.weight.dtype), shift.to(conv.weight.dtype), conv.stride, conv.padding, groups=conv.groups
    )


class Bottleneck(nn.Module):
    """Narrow, look around, widen, and add what came in."""

    def __init__(self, entering: int, planes: int, config: ResNetConfig, *, stride: int, dims: int) -> None:
        super().__init__()
        conv, norm, leaving = _CONV[dims], _NORM[dims], planes * config.expansion
        self.conv1 = conv(entering, planes, 1, bias=False)
        self.bn1 = norm(planes)
        self.conv2 = conv(planes, planes, 3, stride=stride, padding=1, groups=config.groups, bias=False)
        self.bn2 = norm(planes)
        self.conv3 = conv(planes, leaving, 1, bias=False)
        self.bn3 = norm(leaving)
        self.downsample = None
        if stride != 1 or entering != leaving:
            self.downsample = nn.Sequential(conv(entering, leaving, 1, stride=stride, bias=False), norm(leaving))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else normalised(x, self.downsample[0], self.downsample[1])
        x = F.relu(normalised(x, self.conv1, self.bn1), inplace=True)
        x = F.relu(normalised(x, self.conv2, self.bn2), inplace=True)
        return F.relu(normalised(x, self.conv3, self.bn3).add_(shortcut), inplace=True)


class ResNet(nn.Module):
    """Images N x 3 x height x width to features N x `config.width` x height / stride x width / stride (rounded up)."""

    dims = 2

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        dims = self.dims
        stride = (2,) * dims if dims == 2 else (1, 2, 2)  # a video keeps every frame until the pooling
        self.conv1 = _CONV[dims](3, config.stem, config.kernel, stride=stride, padding=config.kernel // 2, bias=False)
        self.bn1 = _NORM[dims](config.stem)
        self.maxpool = _POOL[dims](3, stride=2, padding=1)
        self.stages: list[str] = []
        entering = config.stem
        for index, (depth, planes) in enumerate(zip(config.depths, config.planes, strict=True)):
            blocks = []
            for block in range(depth):
                step = 2 if index > 0 and block == 0 else 1
                blocks.append(Bottleneck(entering, planes, config, stride=step, dims=dims))
                entering = planes * config.expansion
            self.stages.append(f"layer{index + 1}")
            self.add_module(self.stages[-1], nn.Sequential(*blocks))
        if config.classes:
            self.fc = nn.Linear(entering, config.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last if self.dims == 2 else torch.channels_last_3d)
        x = self.maxpool(F.relu(normalised(x, self.conv1, self.bn1), inplace=True))
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return x
