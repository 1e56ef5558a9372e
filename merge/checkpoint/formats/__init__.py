"""The formats of checkpoints: a format is one file here and one line in `FORMATS`, which holds all about it."""

from __future__ import annotations

from merge.checkpoint.formats import distributed, npz, safetensors, t5x
from merge.checkpoint.formats.format import Format, Glimpse
from merge.checkpoint.formats.torch_zip import planner as torch_planner
from merge.checkpoint.formats.torch_zip import reader as torch_reader

# In a folder that holds files of several formats the first format here is taken.
FORMATS: dict[str, Format] = {
    "safetensors": Format(
        "safetensors",
        (".safetensors",),
        rb".{3}[\x00-\x06]\x00{4}\{\s*[\"}]",  # the header's length, up to 100 MB, then JSON
        safetensors.read,
        "names are its own; tied tensors are written twice; lacks complex128 and float8 beyond e4m3fn and e5m2",
        planner=safetensors.plan,
        folder_planner=safetensors.plan_folder,
    ),
    "torch": Format(
        "torch zip",
        (".pt", ".pth", ".bin", ".ckpt", ".pth.tar"),
        # A zip file whose first member is the pickle, or the number that torch's files began with before 1.6.
        rb"PK\x03\x04.{26}[^\x00-\x1f]+/data\.pkl|\x80[\x01-\x05].{0,9}\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19",
        torch_reader.read,
        "names are its own; `--section` for training files; tied tensors stay one",
        planner=torch_planner.plan,
        keeps_ties=True,
        checksums=True,
        inside=rb"/data\.pkl",
    ),
    "npz": Format(
        "npz",
        (".npz",),
        rb"PK\x03\x04.{26}[^\x00-\x1f]+\.npy",
        npz.read,
        "names are members and keys joined with dots; tied tensors are written twice; lacks bfloat16 and float8",
        planner=npz.plan,
        checksums=True,
    ),
    "t5x": Format(
        "T5X",
        (".t5x",),
        rb"[\x80-\x8f\xde\xdf]",  # a msgpack map
        t5x.read,
        "names are keys joined with dots; tied tensors are written twice",
        planner=t5x.plan,
        index="checkpoint",
        extra="t5x",
    ),
    "distributed": Format(
        "torch distributed",
        (".distcp",),
        rb"\x80[\x02-\x05]",  # a pickle
        distributed.read,
        "only read; names are as before they were distributed; `--section` as for torch files",
        index=distributed.INDEX,
    ),
}


def format_of(look: Glimpse) -> Format | None:
    """Tell a file's format by its bytes; None for what is not read."""
    return next((format for format in FORMATS.values() if not format.index and format.matches(look)), None)
