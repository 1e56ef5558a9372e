"""What the tests of the merging engine share: a server that runs command lines, and pairs of tiny checkpoints."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.merge.handmade import fairseq, random_tensor
from tests.merge.running import Server


@pytest.fixture(scope="session")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`command("interpolate", a, b, ...)` runs unival-merge in a process of its own."""
    server = Server(tmp_path_factory.mktemp("commands"))
    yield server
    server.close()


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two safetensors files with the same four float32 tensors, in a folder `in`."""
    paths = tmp_path / "in" / "a.safetensors", tmp_path / "in" / "b.safetensors"
    paths[0].parent.mkdir()
    for seed, path in enumerate(paths):
        save_file({f"layer.{i}.weight": random_tensor((4, 3), torch.float32, 10 * seed + i) for i in range(4)}, path)
    return paths


@pytest.fixture
def fairseq_pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two training files in the published layout."""
    paths = tmp_path / "vqa.pt", tmp_path / "caption.pt"
    for seed, path in enumerate(paths):
        torch.save(fairseq(seed), path)
    return paths


@pytest.fixture
def middle() -> Callable[[Tensor, Tensor, float], Tensor]:
    """The straight line between two tensors, computed in float32 and rounded once."""

    def lerp(first: Tensor, second: Tensor, ratio: float) -> Tensor:
        return torch.lerp(first.float(), second.float(), ratio).to(first.dtype)

    return lerp
