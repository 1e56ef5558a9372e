"""What ready tasks are asked of: data by split, the batches that they come in, and whether they changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
import xxhash
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from experiments.errors import StudyError

Data: TypeAlias = "Mapping[str, Any] | Callable[[str], Any]"
SAMPLED = 32  # examples of a data set that loads them, which stand for all in its digest


@dataclass(frozen=True)
class Scored:
    """A scoring function of data by split; `name` is what errors call it."""

    name: str
    data: Data

    def __post_init__(self) -> None:
        if not isinstance(self.data, Mapping) and not callable(self.data):
            raise StudyError(
                f"{self.name}: give data by name of a split, as {{'val': ..., 'test': ...}}, or a function of that "
                f"name; this is a {type(self.data).__name__}"
            )
        if (size := getattr(self, "batch_size", 1)) < 1:
            raise StudyError(f"{self.name}: batch_size={size!r}: give 1 or more")

    def of(self, split: str) -> Any:
        """Return the data of a split."""
        if not isinstance(self.data, Mapping):
            return self.data(split)
        if split not in self.data:
            raise StudyError(f"{self.name} has no data of split {split!r}: it has {', '.join(self.data) or 'none'}")
        return self.data[split]

    def digest(self, split: str) -> str:
        """Return what tells these data and options from others (`digest_of`): where it changes, rows are evaluated
        again."""
        return digest_of([self.of(split), *self.options])

    @property
    def options(self) -> list[Any]:
        """Return what scores depend on besides the data."""
        return []


def digest_of(data: Any) -> str:
    """Return a digest of data: of every value of arrays, texts and what is made of them; of a data set that loads its
    examples, its length and `SAMPLED` of them.

    >>> digest_of([torch.zeros(2)]) == digest_of([torch.zeros(2)]), digest_of(["a", "b"]) == digest_of(["ab"])
    (True, False)
    """
    code = xxhash.xxh3_128()
    _feed(code, data)
    return f"xxh3_128/{code.hexdigest()}"


def _feed(code: xxhash.xxh3_128, value: Any) -> None:
    if isinstance(value, Tensor):
        held = value.detach().cpu().contiguous().reshape(-1)
        code.update(f"tensor {value.dtype} {list(value.shape)}".encode())
        code.update(held.view(torch.uint8).numpy().tobytes())
    elif isinstance(value, (str, bytes, int, float, complex, type(None))):
        code.update(f"{type(value).__name__} {len(repr(value))} {value!r}".encode())
    elif isinstance(value, Mapping):
        code.update(f"mapping {len(value)}".encode())
        for name, one in value.items():
            _feed(code, name)
            _feed(code, one)
    elif isinstance(value, (DataLoader, TensorDataset)):
        _feed(code, value.dataset if isinstance(value, DataLoader) else value.tensors)
    elif isinstance(value, (list, tuple)):
        code.update(f"list {len(value)}".encode())
        for one in value:
            _feed(code, one)
    elif hasattr(value, "__array__") or hasattr(value, "__array_interface__"):
        array = np.asarray(value)
        if array.dtype.hasobject:
            return _feed(code, array.tolist())
        code.update(f"array {array.dtype.str} {list(array.shape)}".encode())
        code.update(array.tobytes())
    elif hasattr(value, "__len__") and hasattr(value, "__getitem__"):
        code.update(f"{type(value).__name__} {len(value)}".encode())
        for index in spread(len(value), SAMPLED):
            _feed(code, value[index])
    else:
        code.update(type(value).__name__.encode())
    return None


def spread(count: int, most: int) -> list[int]:
    """Return so many of 0 ... count - 1, evenly spread; all where there are no more.

    >>> spread(10, 4), spread(2, 4)
    ([0, 2, 5, 7], [0, 1])
    """
    return list(range(count)) if count <= most else [index * count // most for index in range(most)]


def batches_of(data: Any, size: int, most: int | None = None) -> Iterator[Any]:
    """Yield batches: what a loader yields, or `size` examples of a data set, or of arrays of one length in a tuple.

    `most` examples, evenly spread, are taken of a data set or of arrays that have more.
    """
    if isinstance(data, tuple):
        count = length_of(data)
        kept = spread(count, most or count)
        for begin in range(0, len(kept), size):
            chosen = kept[begin : begin + size]
            yield tuple(taken(part, chosen) for part in data)
    elif hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        kept = spread(len(data), most or len(data))
        yield from DataLoader(data, size, sampler=kept)
    elif isinstance(data, Iterable) and not isinstance(data, Iterator):
        yield from data
    else:
        raise StudyError(
            f"data are a {type(data).__name__}: give arrays (inputs, labels), a data set or a loader that can be gone "
            "through again and again"
        )


def length_of(parts: Any) -> int:
    """Return how many examples arrays have, all of them as many."""
    sizes = [len(one) for part in parts for one in (part.values() if isinstance(part, Mapping) else (part,))]
    if len(set(sizes)) != 1:
        raise StudyError(f"arrays of one split have {', '.join(map(str, sizes))} examples: give as many of each")
    return sizes[0]


def taken(part: Any, chosen: list[int]) -> Any:
    """Return some examples of an array as a tensor, or of each in a mapping."""
    if isinstance(part, Mapping):
        return {name: taken(one, chosen) for name, one in part.items()}
    held = part if isinstance(part, Tensor) else torch.as_tensor(np.asarray(part))
    return held[chosen]


def halves(batch: Any) -> tuple[Any, Any]:
    """Return the inputs of a batch, as `answer` takes them, and its labels: the last of several, or those under
    `labels` or `label`."""
    if isinstance(batch, Mapping):
        name = next((name for name in ("labels", "label") if name in batch), None)
        if name is None:
            raise StudyError(f"a batch of {', '.join(map(str, batch))}: labels are looked for under labels or label")
        return {key: value for key, value in batch.items() if key != name}, batch[name]
    if not isinstance(batch, (list, tuple)) or len(batch) < 2:
        raise StudyError(f"a batch is a {type(batch).__name__}: give inputs and labels")
    *inputs, labels = batch
    return (inputs[0] if len(inputs) == 1 else inputs), labels


def logits_of(output: Any) -> Tensor:
    """Return the logits of what a model returned: a tensor, or its `logits`, or the first of several."""
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if isinstance(found, (list, tuple)) and found:
        found = found[0]
    if not isinstance(found, Tensor):
        raise StudyError(f"the model returned a {type(output).__name__}: logits are a tensor, or under that name")
    return found
