"""What lies in a folder: the weights of each of its parts, and beside them what is taken over and what is left out.

A part is a folder with weights of its own: a component of a diffusers pipeline, a module of sentence-transformers. Of
several encodings of one part's weights the first of `FORMATS` counts, and of several variants (`model.fp16`) the plain.
"""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path

from merge.checkpoint.formats import FORMATS, format_of
from merge.checkpoint.formats.format import Glimpse
from merge.checkpoint.owned import RECIPE
from merge.errors import MergeError

DEEPEST = 4  # folders within folders that are looked into
INDEX = re.compile(r".+\.index(\.[^.]+)?\.json")  # diffusers writes the index of a variant as ...index.fp16.json
# Files that say which folders make one model together; weights beside the first are the same model in one file.
PIPELINE, MODULES = "model_index.json", "modules.json"
SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-\d{5}(?P<variant>\.[^.]+)?\.[^.]+")

# What training writes beside weights. It belongs to the weights that it was written with, and to no merge of them.
_STATE = re.compile(
    r"(optimizer|scheduler|lr_scheduler|scaler|sampler|dl_state)([._-]?\d+)?\.(pt|pth|bin|pkl|safetensors)"
    r"|rng_state.*\.pth|random_states.*\.pkl|custom_checkpoint_.*\.pkl|training_args\.bin|trainer_state\.json"
    r"|trainer_log\.jsonl|(all|eval|train|test|predict)_results\.(json|txt)|zero_to_fp32\.py|latest|events\.out\..*"
    r"|.*_optim_states\.pt"
)
_STATES = re.compile(r"global_step\d+|optimizer(_\d+)?|pytorch_model_fsdp(_\d+)?|runs|wandb|logs|eval")
# The same weights for other programs: nothing here merges them, and after a merge they would be stale.
_OTHERS = re.compile(
    r".*\.(h5|keras|msgpack|onnx|onnx_data|gguf|ggml|ot|tflite|pb|mlmodel|pdparams|nemo|engine|mlpackage)"
    r"|openvino.*\.(bin|xml)",
    re.IGNORECASE,
)
_OTHER = re.compile(r"(onnx|openvino|coreml|tflite|flax|original|gguf|.*\.mlpackage|.*\.mlmodelc)")
_CARD = re.compile(r"readme.*\.md|model_?card.*\.md", re.IGNORECASE)
_ANOTHER = re.compile(
    r"(.*[-_])?(checkpoint|ckpt|step|steps|epoch|iter|iteration|global_step)[-_=]?\d+.*", re.IGNORECASE
)
_NOTHING = ("__pycache__",)  # neither taken over nor worth a word


def weights_in(folder: Path, *, look: bool = False) -> Path | None:
    """The file or index with the weights of a folder, without those below it; the folder itself where it is a format.

    Suffixes tell, and with `look` the first bytes of every file where no suffix does.
    Raises MergeError where there are several and none is the plain one of the first format.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    names = {path.name for path in files}
    if any(format.index in names for format in FORMATS.values() if format.index):
        return folder
    kinds = [format.suffixes for format in FORMATS.values() if not format.index]
    indexes = [path for path in files if INDEX.fullmatch(path.name)]
    # One of a variant ("model.safetensors.index.fp32.json") where the plain weights are a file.
    indexes = [
        one for one in indexes if one.name.endswith(".index.json") or one.name.partition(".index.")[0] not in names
    ]
    weights = [path for path in files if not is_state(path.name)]
    first = ([path for path in indexes if any(f"{end}." in path.name for end in ends)] for ends in kinds)
    then = ([path for path in weights if path.name.lower().endswith(ends)] for ends in kinds)
    named = next(filter(None, first), indexes) or next(filter(None, then), [])
    return _plain(folder, named or [path for path in weights if look and format_of(Glimpse.of(path))])


def _plain(folder: Path, found: list[Path]) -> Path | None:
    """The only file, or the one that the others are variants of. Raises MergeError where there is none such."""
    plain = [path for path in found if all(_is_variant(other.name, path.name) for other in found)]
    if found and not plain:
        what = "several indexes" if INDEX.fullmatch(found[0].name) else f"{len(found)} weight files and no index"
        names = ", ".join(path.name for path in found[:5])
        raise MergeError(f"{folder}: has {what}; open one of them: {names}")
    return plain[0] if plain else None


def _is_variant(name: str, of: str) -> bool:
    """Whether a file is the plain one or a variant of it: `model.fp16.safetensors` of `model.safetensors`."""
    stem, _, suffix = of.rpartition(".")
    return name == of or (name.startswith(f"{stem}.") and name.endswith(f".{suffix}"))


def is_state(name: str) -> bool:
    """Tell whether a file is the state of a training, by its name."""
    return _STATE.fullmatch(name) is not None


def has_weights(folder: Path) -> bool:
    """Tell whether weights lie in a folder, without those below it."""
    try:
        return weights_in(folder) is not None
    except MergeError:  # several
        return True


def parts_in(folder: Path, *, strict: bool, deep: int = 0) -> dict[str, Path]:
    """Give where the weights of the folders below lie, by `prefix/`: what tensors of that part are called by.

    Left out are folders that hold training states, the same weights for other programs, and (an error with `strict`)
    several files of which none is the weights. Other checkpoints of one training are among them: `is_another`.
    """
    found: dict[str, Path] = {}
    for item in sorted(folder.iterdir()) if deep < DEEPEST else ():
        if not item.is_dir() or item.name.startswith(".") or _is_no_part(item.name):
            continue
        try:
            place = weights_in(item, look=strict)
            if place is not None:
                found[f"{item.name}/"] = place
            below = {} if place == item else parts_in(item, strict=strict, deep=deep + 1)
        except (MergeError, OSError):
            if strict:
                raise
            continue
        found |= {f"{item.name}/{prefix}": path for prefix, path in below.items()}
    return found


def _is_no_part(name: str) -> bool:
    return name in _NOTHING or bool(_STATES.fullmatch(name) or _OTHER.fullmatch(name))


def is_another(prefix: str) -> bool:
    """Tell whether a part lies, by its name, in one of several checkpoints of a training."""
    return any(_ANOTHER.fullmatch(name) for name in prefix.split("/"))


def walk(folder: Path, parts: Collection[str], prefix: str = "") -> Iterator[tuple[str, Path]]:
    """Give everything below a folder, with its relative name; what is no part, link or plain folder comes as one."""
    for item in sorted(folder.iterdir()):
        name = prefix + item.name
        if item.name in _NOTHING:
            continue
        if item.is_dir() and (f"{name}/" in parts or not _is_aside(item)):
            yield from walk(item, parts, f"{name}/")
        else:
            yield name, item


def _is_aside(folder: Path) -> bool:
    """Whether nothing of a folder that is no part is taken over."""
    name = folder.name
    return folder.is_symlink() or name.startswith(".") or _is_no_part(name) or is_another(name) or has_weights(folder)


def why_left_out(path: Path) -> str:
    """Why something beside weights is not taken over; empty for what is."""
    name = path.name
    if path.is_dir():
        others = "other weights" if _OTHER.fullmatch(name) or has_weights(path) else "other folders"
        return "training state" if _STATES.fullmatch(name) else "other checkpoints" if is_another(name) else others
    if is_state(name):
        return "training state"
    if _OTHERS.fullmatch(name) or INDEX.fullmatch(name) or name.lower().endswith(_suffixes()):
        return "other weights"
    if _CARD.fullmatch(name):
        return "model cards"
    if name.endswith(RECIPE):
        return "recipes"
    return "" if path.is_file() else "what is no file"


def _suffixes() -> tuple[str, ...]:
    return tuple(suffix for format in FORMATS.values() for suffix in format.suffixes)
