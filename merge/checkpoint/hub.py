"""Models of the Hugging Face hub by name: `org/name[@revision]` or `hf://org/name`; its cache comes first."""

# huggingface_hub is an extra, and what a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path, PurePosixPath

from merge.checkpoint.folder import INDEX, parts_in, weights_in
from merge.checkpoint.formats import FORMATS
from merge.errors import MergeError

_WORD = r"[A-Za-z0-9][\w.-]*"
_ID = rf"(?P<org>{_WORD})/(?P<name>{_WORD}?)(?:@(?P<revision>refs/pr/\d+|{_WORD}))?"
_BARE = re.compile(_ID)
_MARKED = re.compile(rf"hf:/{{1,2}}{_ID}(?:/(?P<inside>.+))?")  # a path has one of two slashes left
_CACHED = re.compile(r"(?:.*/)?models--(?P<org>[^/]+?)--(?P<name>[^/]+)/snapshots/.*")
# The same weights for other programs, and what training left.
_NEVER = ["*.h5", "*.msgpack", "*.onnx*", "*.ot", "*.gguf", "*.tflite", "*.mlmodel", "*.pb", "optimizer*", "rng_state*"]
_TORCH = (".bin", ".pt", ".pth", ".ckpt")


def hub_id(path: str | Path) -> str:
    """Give the `org/name` that a path means: marked as the hub's, or lying in the hub's cache; empty for any other."""
    found = _MARKED.fullmatch(str(path)) or _CACHED.fullmatch(Path(path).as_posix())
    return f"{found['org']}/{found['name']}" if found else ""


def _meant(path: Path) -> re.Match[str] | None:
    """The parts of a name of the hub. A path that exists is none, nor is one whose folder exists, nor a file's name."""
    text = path.as_posix()
    if marked := _MARKED.fullmatch(text):
        return marked
    if os.path.lexists(path) or path.parent.exists() or path.is_absolute():
        return None
    is_file = any(path.name.endswith(format.suffixes) for format in FORMATS.values()) or path.suffix == ".json"
    return None if is_file else _BARE.fullmatch(text)


def is_hub(path: Path) -> bool:
    """Tell whether a path is the name of a model of the hub."""
    return _meant(path) is not None


def located(path: Path) -> Path:
    """Give the folder of a model of the hub, fetched if it is not in the cache; any other path as it is.

    Raises MergeError where it is not in the cache and cannot be fetched.
    """
    meant = _meant(path)
    if meant is None and path.as_posix().startswith("hf:"):
        raise MergeError(f"{path}: is no name of a model of the hub; they are written hf://org/name[@revision]")
    if meant is None:
        return path
    name, revision = f"{meant['org']}/{meant['name']}", meant["revision"] or "main"
    snapshot = _in_cache(name, revision)
    if snapshot is None or not _is_whole(snapshot):
        snapshot = _fetched(path, name, revision)
    inside = meant.groupdict().get("inside")
    return snapshot / inside if inside else snapshot


def recorded(path: Path) -> str:
    """Give an input's path as recipes hold it: absolute, or of the hub with the commit that was read."""
    if not is_hub(path):
        return str(path.resolve())
    meant = _meant(path)
    assert meant is not None
    snapshot = located(Path(f"hf://{meant['org']}/{meant['name']}@{meant['revision'] or 'main'}"))
    inside = meant.groupdict().get("inside")
    return f"hf://{meant['org']}/{meant['name']}@{snapshot.name}" + (f"/{inside}" if inside else "")


def joined(folder: Path, text: str) -> Path:
    """Give a path that a recipe in a folder names: relative to the folder, unless it is of the hub."""
    if _MARKED.fullmatch(text) or (not os.path.lexists(folder / text) and is_hub(Path(text))):
        return Path(text)
    return folder / text


def _in_cache(name: str, revision: str) -> Path | None:
    """The folder of a model in the hub's cache: refs name commits, snapshots hold their files."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or Path(home, "hub"))
    model = cache.expanduser() / f"models--{name.replace('/', '--')}"
    with contextlib.suppress(OSError, ValueError):
        revision = (model / "refs" / revision).read_text(encoding="utf-8").strip()
    snapshot = model / "snapshots" / PurePosixPath(revision).name
    return snapshot if snapshot.is_dir() else None


def _is_whole(snapshot: Path) -> bool:
    """Whether the weights of a snapshot are there: a cache may hold some of a model's files."""
    try:
        place = weights_in(snapshot)
        if place is not None and INDEX.fullmatch(place.name):
            shards = json.loads(place.read_text(encoding="utf-8"))["weight_map"].values()
            return all((snapshot / str(file)).is_file() for file in set(shards))
        return place is not None or bool(parts_in(snapshot, strict=False))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, MergeError):
        return True  # what is wrong with it is told when it is opened


def _fetched(path: Path, name: str, revision: str) -> Path:
    """Fetch a model: of every folder in it the safetensors, else the torch files, and all else that is no weights."""
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ImportError as error:
        raise MergeError(
            f"{path}: no such file or folder, and the model {name} is not in the hub's cache; to fetch it: "
            "pip install 'unival-merge[hub]'"
        ) from error
    try:
        listed = (
            HfApi().model_info(name, revision=revision, timeout=10).siblings or []
        )  # fails at once without a network
        files = [PurePosixPath(file.rfilename) for file in listed]
        safe = {file.parent for file in files if file.suffix == ".safetensors"}
        twice = [str(file) for file in files if file.suffix in _TORCH and file.parent in safe]
        return Path(snapshot_download(name, revision=revision, ignore_patterns=[*_NEVER, *twice]))
    except Exception as error:  # the library and what it stands on raise dozens of kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise MergeError(
            f"{path}: no such file or folder, and the model {name} at {revision} is neither in the hub's cache nor can "
            f"it be fetched ({reason}); check the name and the network, or fetch it where there is one"
        ) from error
