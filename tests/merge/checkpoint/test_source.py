"""What is loaded, saved and digested may be a path, an open checkpoint, a state dict or a module; nothing else may."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import merge
from merge import MergeError
from tests.merge.handmade import assert_tensors


class Tied(nn.Module):
    """Two names of one tensor, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(3, 2)
        self.head = nn.Linear(2, 3, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("steps", torch.tensor(7))


@pytest.fixture(params=["module", "state dict", "str", "path", "checkpoint"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Tied]:
    """One model in every form."""
    model = Tied()
    path = merge.save_checkpoint(model, tmp_path / "model.pt")
    forms: dict[str, Callable[[], Any]] = {
        "module": lambda: model,
        "state dict": model.state_dict,
        "str": lambda: str(path),
        "path": lambda: path,
        "checkpoint": lambda: merge.open_checkpoint(path),
    }
    return forms[request.param](), model


def test_one_model_in_every_form(source: tuple[Any, Tied], tmp_path: Path) -> None:
    given, model = source
    assert merge.digest(given) == merge.digest(model.state_dict())
    saved = merge.save_checkpoint(given, tmp_path / "again.safetensors")
    assert_tensors(merge.load_checkpoint(saved), model.state_dict())
    assert_tensors(merge.load_checkpoint(given), model.state_dict())


def test_what_was_loaded_is_of_its_own(source: tuple[Any, Tied]) -> None:
    """Nothing of the source changes with it, and ties are ties."""
    given, model = source
    loaded = merge.load_checkpoint(given)
    assert not any(tensor.requires_grad for tensor in loaded.values())
    loaded["embed.weight"].fill_(1)
    assert torch.equal(loaded["head.weight"], torch.ones(3, 2))
    assert merge.digest(given) == merge.digest(model)
    assert merge.digest(given) != merge.digest(loaded)


def test_a_section_of_a_training_file(fairseq_pair: tuple[Path, Path], tmp_path: Path) -> None:
    path = fairseq_pair[0]
    for section in ("model", "extra_state.ema"):
        wanted = merge.load_checkpoint(path, section)
        assert merge.digest(path, section=section) == merge.digest(wanted)
        saved = merge.save_checkpoint(path, tmp_path / f"{section}.safetensors", section=section)
        assert merge.digest(saved) == merge.digest(wanted)
    again = merge.save_checkpoint(wanted, tmp_path / "like.pt", like=path, section="model")
    assert merge.open_checkpoint(again, "model").content.others
    with pytest.raises(
        MergeError, match=r"several sections with weights: model .*; choose one, as section='extra_state.ema'$"
    ):
        merge.digest(path)


STATE = {"w": torch.zeros(2)}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda out: merge.load_checkpoint(3), "int is no checkpoint: give a path, an open Checkpoint"),
        (lambda out: merge.load_checkpoint({"model": STATE}), "model is a dict, not a tensor"),
        (lambda out: merge.digest([STATE]), "list is no checkpoint"),
        (lambda out: merge.open_checkpoint(STATE), "the checkpoint to open must be a path, not a dict"),
        (lambda out: merge.save_checkpoint(None, out), "NoneType is no checkpoint"),
        (lambda out: merge.save_checkpoint(out, STATE), "the output must be a path, not a dict"),
        (lambda out: merge.save_checkpoint(STATE, out, like=STATE), "to open must be a path, not a dict"),
        (
            lambda out: merge.save_checkpoint(STATE, out, metadata={"epoch": 3}),
            "metadata={'epoch': 3}: must be texts by name",
        ),
        (lambda out: merge.save_checkpoint(STATE, out, metadata="text"), "metadata=text: must be texts by name"),
        (lambda out: merge.save_checkpoint(STATE, out, shard_size="2GB"), "shard_size='2GB': must be a number of"),
        (lambda out: merge.save_checkpoint(STATE, out, shard_size=0), "shard_size=0: must be a number of bytes"),
    ],
)
def test_wrong_types_are_one_line(tmp_path: Path, call: Callable[[Path], object], message: str) -> None:
    with pytest.raises(MergeError) as caught:
        call(tmp_path / "out")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_library_speaks_of_arguments(tmp_path: Path) -> None:
    out = merge.save_checkpoint(STATE, tmp_path / "out.pt")
    with pytest.raises(MergeError, match=r"exists; choose another name or pass overwrite=True$"):
        merge.save_checkpoint(STATE, out)
    with pytest.raises(MergeError, match=r"written in shards; name a folder or leave shard_size=\.\.\. out$"):
        merge.save_checkpoint(STATE, tmp_path / "other.pt", shard_size=10)
    state = {"w": torch.zeros(2, dtype=torch.bfloat16)}
    with pytest.raises(MergeError, match=r"npz files cannot hold; choose another, as dtype='float32'$"):
        merge.save_checkpoint(state, tmp_path / "out.npz")
