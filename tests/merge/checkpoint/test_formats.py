"""The table of formats: every entry is whole, and a format of one's own is one file and one line."""

import re
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import merge
from merge import MergeError, open_checkpoint, save_checkpoint
from merge.checkpoint.formats import FORMATS
from merge.checkpoint.formats.elements import ELEMENTS
from merge.checkpoint.formats.format import Content, Format, Glimpse, Layout
from merge.checkpoint.formats.tensors import MappedFile, TensorEntry
from merge.tools.diagnose.inspection import inspect
from tests import ROOT
from tests.merge.handmade import assert_tensors

PAGE = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
WEIGHTS = {"encoder.weight": torch.arange(6.0).view(2, 3), "encoder.bias": torch.tensor([0.5, -0.25])}
WRITTEN = [name for name, format in FORMATS.items() if format.planner]


def missing(name: str, format: Format) -> list[str]:
    """What an entry of the table lacks, in words."""
    others = [suffix for key, other in FORMATS.items() if key != name for suffix in other.suffixes]
    extras = (ROOT / "setup.cfg").read_text(encoding="utf-8").partition("[options.extras_require]")[2]
    row = f"| {format.label} | `{' '.join(format.suffixes)}` | {format.doc} |"
    checks = {
        "a label": bool(format.label),
        "a suffix that begins with a dot": bool(format.suffixes) and all(s.startswith(".") for s in format.suffixes),
        "suffixes that no other format has": not set(others) & set(format.suffixes),
        "a signature that not every file has": bool(format.signature) and not format.matches(Glimpse("", b"\0")),
        "a reader": callable(format.reader),
        "a sentence for the docs": bool(format.doc),
        "its extra in setup.cfg": not format.extra or f"\n{format.extra} =" in extras,
        f"its row in docs/formats.md: {row}": row in PAGE,
    }
    return [what for what, there in checks.items() if not there]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_whole(name: str) -> None:
    assert not missing(name, FORMATS[name]), f"the format {name!r} lacks {'; '.join(missing(name, FORMATS[name]))}"


def test_what_an_entry_lacks_is_named() -> None:
    hollow = replace(FORMATS["npz"], label="", suffixes=("npz",), signature=b"", doc="", extra="nothing")
    assert [what.split(":")[0] for what in missing("npz", hollow)] == [
        "a label",
        "a suffix that begins with a dot",
        "a signature that not every file has",
        "a sentence for the docs",
        "its extra in setup.cfg",
        "its row in docs/formats.md",
    ]
    assert missing("other", FORMATS["npz"]) == ["suffixes that no other format has"]


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_has_the_signature_of_its_format_alone(name: str, tmp_path: Path) -> None:
    path = save_checkpoint(WEIGHTS, tmp_path / f"c{FORMATS[name].suffixes[0]}")
    look = Glimpse.of(path / FORMATS[name].index if FORMATS[name].index else path)
    # One byte of msgpack tells little: a format that is a folder is known by the file in it.
    fitting = [key for key, format in FORMATS.items() if format.matches(look) and format.index == FORMATS[name].index]
    assert fitting == [name]
    assert_tensors(open_checkpoint(path), WEIGHTS)


@pytest.mark.parametrize("name", WRITTEN)
def test_ties_are_kept_where_the_entry_says_so(name: str, tmp_path: Path) -> None:
    tied = {"a": torch.ones(3), "b": torch.zeros(2)}
    path = save_checkpoint({**tied, "c": tied["a"]}, tmp_path / f"c{FORMATS[name].suffixes[0]}")
    entries = open_checkpoint(path).entries
    assert (entries["a"].tie is not None and entries["a"].tie == entries["c"].tie) == FORMATS[name].keeps_ties


@pytest.mark.parametrize("content", [name for name in WRITTEN if not FORMATS[name].index])
@pytest.mark.parametrize(
    "name", ["c", "c.PT", "c.safetensors", "c.npz", "c.pth.tar", "c.model", "c.h5", "c.txt", "c.json"]
)
def test_the_bytes_decide_and_not_the_name(content: str, name: str, tmp_path: Path) -> None:
    path = save_checkpoint(WEIGHTS, tmp_path / f"first{FORMATS[content].suffixes[0]}").rename(tmp_path / name)
    checkpoint = open_checkpoint(path)
    assert checkpoint.format is FORMATS[content]
    assert_tensors(checkpoint, WEIGHTS)
    inside = tmp_path / "folder"
    inside.mkdir()
    path.rename(inside / name)
    (inside / "notes.md").write_text("how it was trained")
    (inside / "config.json").write_text("{}")
    assert_tensors(open_checkpoint(inside), WEIGHTS)


# -- a format of one's own ---------------------------------------------------------------------------------------------


def read_raw(path: Path) -> Content:
    file = MappedFile(path)
    return Content(path, {".": {"w": TensorEntry(ELEMENTS["float32"], (file.size // 4 - 1,), file, 4)}})


def test_a_format_that_is_only_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "raw", Format("raw floats", (".raw",), b"RAW0", read_raw, "one tensor"))
    path = tmp_path / "a.raw"
    path.write_bytes(b"RAW0" + torch.tensor([1.5, -2.0]).numpy().tobytes())
    checkpoint = open_checkpoint(path)
    assert checkpoint["w"].tolist() == [1.5, -2.0]
    assert inspect(path).layout == "raw floats file"
    save_checkpoint(checkpoint, tmp_path / "b.safetensors", like=checkpoint)
    with pytest.raises(MergeError) as refused:
        save_checkpoint(checkpoint, tmp_path / "b.raw")
    writable = [suffix for entry in FORMATS.values() if entry.planner for suffix in entry.suffixes]
    assert ".raw" not in writable
    known = f"{', '.join(writable)}, or none for a folder"
    assert str(refused.value) == f"{tmp_path / 'b.raw'}: raw floats files are only read; known are {known}"
    with pytest.raises(MergeError) as unknown:
        save_checkpoint(checkpoint, tmp_path / "b.zzz")
    assert str(unknown.value).endswith(f"unknown suffix '.zzz'; known are {known}")
    assert open_checkpoint(path.rename(tmp_path / "a.zzz"))["w"].tolist() == [1.5, -2.0]
    path = tmp_path / "noise"
    path.write_bytes(b"\xff\xfe\x01 noise")
    told = (
        r"noise: is no checkpoint by its first bytes \(b'\\xff\\xfe\\x01 nois'\); read are safetensors, .*, raw floats"
    )
    with pytest.raises(MergeError, match=told):
        open_checkpoint(path)


@pytest.fixture
def bag(monkeypatch: pytest.MonkeyPatch) -> Format:
    """The example of docs/formats.md, as written: its file and its line."""
    section = PAGE.partition("## A format of your own")[2]
    file, line = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    module = types.ModuleType("bag")
    exec(compile(file, "bag.py", "exec"), vars(module))
    entry: dict[str, Format] = eval("{" + line + "}", {"Format": Format, "bag": module})
    for name, format in entry.items():
        monkeypatch.setitem(FORMATS, name, format)
    return FORMATS["bag"]


def test_the_documented_format_is_read_written_merged_and_shown(bag: Format, tmp_path: Path) -> None:
    files = [save_checkpoint({"w": torch.full((2, 3), value)}, tmp_path / f"{value}.bag") for value in (1.0, 3.0)]
    assert files[0].read_bytes().startswith(b"BAG1")
    inputs = tuple(merge.Input(file.stem, file) for file in files)
    merge.run(merge.Recipe("interpolate", inputs, {"ratio": 0.25}), tmp_path / "m.bag")
    merged: dict[str, Tensor] = merge.load_checkpoint(tmp_path / "m.bag")
    assert_tensors(merged, {"w": torch.full((2, 3), 1.5)})
    assert inspect(tmp_path / "m.bag").layout == f"{bag.label} file"
    merge.convert(tmp_path / "m.bag", tmp_path / "m.npz")
    assert_tensors(open_checkpoint(tmp_path / "m.npz"), merged)
    with pytest.raises(MergeError, match=r"w is float16, bags hold float32"):
        save_checkpoint({"w": torch.zeros(2).half()}, tmp_path / "half.bag")
    assert missing("bag", bag) == ["its row in docs/formats.md: | bag | `.bag` | names are its own; only float32 |"]


def test_an_extra_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reader(path: Path) -> Content:
        raise ModuleNotFoundError("No module named 'bagpipe'", name="bagpipe")

    def planner(path: Path, specs: Any, like: Any, metadata: Any) -> Layout:
        raise ModuleNotFoundError("No module named 'bagpipe'", name="bagpipe")

    monkeypatch.setitem(FORMATS, "raw", Format("raw", (".raw",), b"RAW0", reader, "", planner=planner, extra="pipes"))
    (tmp_path / "a.raw").write_bytes(b"RAW0")
    told = r"raw: raw checkpoints need bagpipe: pip install 'unival-merge\[pipes\]'"
    with pytest.raises(MergeError, match=told):
        open_checkpoint(tmp_path / "a.raw")
    with pytest.raises(MergeError, match=told):
        save_checkpoint(WEIGHTS, tmp_path / "b.raw")


# -- how a checkpoint shows itself -------------------------------------------------------------------------------------


def test_a_checkpoint_is_one_readable_line_and_a_small_table(tmp_path: Path) -> None:
    torch.save({"model": {f"<w{i}>": torch.ones(2) for i in range(25)}, "epoch": 3}, tmp_path / "a.pt")
    checkpoint = open_checkpoint(tmp_path / "a.pt", "model")
    assert repr(checkpoint) == f"Checkpoint({tmp_path / 'a.pt'}: section model, 25 tensors, 200 bytes)"
    table = checkpoint._repr_html_()
    assert "<td>&lt;w0&gt;</td><td>float32</td><td>[2]</td>" in table
    assert "and 5 more" in table
    assert table.count("<tr>") == 22
