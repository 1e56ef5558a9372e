"""Models from files and back: our own safetensors (the config is inside) and the published training files.

>>> model = load_model("vqa.pt", section="model")                    # doctest: +SKIP
>>> save_model(model, "vqa.safetensors")                             # doctest: +SKIP
>>> save_model(model, "again.pt", like="vqa.pt", section="model")    # doctest: +SKIP
"""

import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from merge import Checkpoint, open_checkpoint, save_checkpoint
from unival_core.attention import grid_ids, image_buckets
from unival_core.bart import from_bart, is_bart, with_rows
from unival_core.computed import (
    CODE_CELLS,
    TIED,
    TOKENS,
    check_computed,
    check_ties,
    code_image_size,
    is_computed,
)
from unival_core.config import CONFIGS, AudioConfig, ResNetConfig, UnivalConfig, replace
from unival_core.errors import UnivalError
from unival_core.model import UnivalModel
from unival_core.settings import Settings

CONFIG_KEY = "unival_config"  # of a safetensors file's metadata
_CELLS = "encoder.embed_image_positions.weight"
Tensors = dict[str, Tensor]


def load_model(
    path: str | Path,
    config: UnivalConfig | None = None,
    *,
    section: str = "auto",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    strict: bool = True,
) -> UnivalModel:
    """Load the model of a file or folder, in evaluation mode, on `device`, with floating tensors as `dtype`.

    The config is `config`, or the one stored in the file, or read off the tensors (`infer_config`). `section` chooses
    among the weights of a training file ("model", "extra_state.ema"). What `COMPUTED` names is checked and not kept.
    Raises UnivalError with all missing and unexpected names and differing shapes, or where a computed tensor is not
    what the config gives. With `strict=False` known differences are repaired (`REPAIRS`), what is still missing starts
    from scratch, unexpected tensors are left out, and a warning tells each. A file of BART gives a new model that
    starts from it. Unreadable files raise merge.MergeError.
    """
    file = open_checkpoint(path, section)
    config = config or config_of(file)
    if is_bart(file):
        return from_bart(file, config, str(path)).to(device, dtype)
    check_computed(file, config)
    tensors = {name: file[name] for name in file if not is_computed(name)}
    model = bare_model(config) if strict else UnivalModel(config)
    fresh = model.state_dict()
    if not strict:
        for repair in (*REPAIRS, start_missing, drop_unexpected):
            if done := repair(tensors, fresh, config):
                warnings.warn(f"{path}: {done}", stacklevel=2)
    refuse_differences(tensors, fresh, str(path))
    check_ties(tensors, str(path))
    tensors |= dict.fromkeys(TIED, tensors[TOKENS])
    copied = {id(tensor): placed(tensor, device, dtype) for tensor in tensors.values()}
    model.load_state_dict({name: copied[id(tensor)] for name, tensor in tensors.items()}, assign=True)
    model.tie()
    return model.eval()


def save_model(
    model: UnivalModel,
    path: str | Path,
    *,
    like: str | Path | None = None,
    section: str = "auto",
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the model, atomically: as safetensors with its config, or into the layout of the file `like`.

    With `like`, a published training file and its `section`, the new file has the same names, order and dtypes, the
    tensors of `COMPUTED` and every other entry of `like`; saved right after loading, all tensors are bit-identical.
    """
    path = Path(path)
    own = model.state_dict()
    if like is None:
        if path.suffix != ".safetensors":
            raise UnivalError(
                f"{path}: only .safetensors keeps the config; for another layout give `like`, a file of it"
            )
        return save_checkpoint(
            own, path, overwrite=overwrite, metadata={CONFIG_KEY: model.config.to_json(), **(metadata or {})}
        )
    file = open_checkpoint(like, section)
    refuse_differences({name: file[name] for name in file if not is_computed(name)}, own, str(like))
    cast = {(value.data_ptr(), file[name].dtype): value.to("cpu", file[name].dtype) for name, value in own.items()}
    state = {name: cast[own[name].data_ptr(), file[name].dtype] if name in own else file[name] for name in file}
    metadata = {**file.metadata, **(metadata or {})} or None
    return save_checkpoint(state, path, overwrite=overwrite, like=file, metadata=metadata)


def config_of(file: Checkpoint, changes: Mapping[str, Any] | None = None) -> UnivalConfig:
    """Return the config stored in a file, or else what its tensors imply (`infer_config`) and its settings say.

    With `changes`, some fields as JSON has them, the settings do not count. Raises UnivalError where the file's
    settings are not those of this model.
    """
    if (stored := file.metadata.get(CONFIG_KEY)) is not None:
        config = UnivalConfig.from_json(stored)
    elif is_bart(file):
        config = replace(CONFIGS["base"], audio=None)  # the media of pretraining
    else:
        config = infer_config(file, changes)
        config = config if changes else Settings.of(file).applied(config, str(file.path))
    return config.changed(changes) if changes else config


class _NoNumbers(TorchFunctionMode):
    """Skips the drawing of random weights, which on the meta device would import torch's compiler, for seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in ("normal_", "uniform_", "kaiming_normal_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def bare() -> Iterator[None]:
    """Make modules whose tensors have names and shapes but no values (they are on the meta device)."""
    with torch.device("meta"), _NoNumbers():
        yield


def bare_model(config: UnivalConfig) -> UnivalModel:
    """Return a model whose tensors have no values."""
    with bare():
        return UnivalModel(config)


def placed(tensor: Tensor, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    """Return a copy that no longer depends on the file; integers keep their type."""
    return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype, copy=True)


def refuse_differences(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: str) -> None:
    """Raise UnivalError with every name and shape in which a file differs from a model."""
    missing, unexpected = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    shapes = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & tensors.keys())
        if tensors[name].shape != wanted[name].shape
    ]
    told = [
        f"{what}: {', '.join(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("shapes", shapes))
        if names
    ]
    if told:
        raise UnivalError(f"{path} does not fit the model ({'; '.join(told)}): give its config, or strict=False")


# -- repairs of old files: each changes `tensors` and tells what it did, or returns None


def append_vocabulary(tensors: Tensors, fresh: Mapping[str, Tensor], config: UnivalConfig) -> str | None:
    """Give ids that a smaller vocabulary lacked fresh rows, at the end."""
    known = len(tensors.get(TOKENS, fresh[TOKENS]))
    if known >= config.vocabulary:
        return None
    whole = with_rows(tensors[TOKENS], config.vocabulary)
    for name in (TOKENS, *TIED):
        tensors[name] = whole
    return f"appended {config.vocabulary - known} fresh rows to a vocabulary of {known}"


def grow_text_positions(tensors: Tensors, fresh: Mapping[str, Tensor], config: UnivalConfig) -> str | None:
    """Give text positions beyond those of the file fresh rows."""
    grown = []
    for name in ("encoder.embed_positions.weight", "decoder.embed_positions.weight"):
        if name in tensors and len(tensors[name]) < len(fresh[name]):
            known = tensors[name]
            tensors[name] = torch.cat((known, fresh[name][len(known) :].to(known)))
            grown.append(f"{name} from {len(known)} rows")
    return f"grew {', '.join(grown)} to {config.max_positions + 2}" if grown else None


def grow_image_positions(tensors: Tensors, fresh: Mapping[str, Tensor], config: UnivalConfig) -> str | None:
    """Move what a smaller grid learned, of cells and of offsets between cells, to its place in the larger one."""
    side, known = config.image_bucket, math.isqrt(len(tensors.get(_CELLS, fresh[_CELLS])) - 1)
    if known >= side:
        return None
    cells = torch.cat((torch.zeros(1, dtype=torch.long), grid_ids(known, known, side, torch.device("cpu"))))
    before, after = image_buckets(torch.arange(known**2 + 1), known), image_buckets(cells, side)
    moved = [name for name in fresh if "image_rel_pos" in name or re.search(r"embed_\w+_positions", name)]
    for name in moved:
        if name in tensors:
            offsets = "image_rel_pos" in name
            table = fresh[name].to(tensors[name])
            table[after if offsets else cells] = tensors[name][before] if offsets else tensors[name]
            tensors[name] = table
    return f"moved a grid of {known} x {known} positions into one of {side} x {side}"


def start_missing(tensors: Tensors, fresh: Mapping[str, Tensor], config: UnivalConfig) -> str | None:
    """Let what the file lacks start from scratch."""
    missing = sorted(fresh.keys() - tensors.keys())
    tensors.update({name: fresh[name] for name in missing})
    tensors.update({name: tensors[TOKENS] for name in TIED if name in missing})
    return f"started from scratch: {', '.join(missing)}" if missing else None


def drop_unexpected(tensors: Tensors, fresh: Mapping[str, Tensor], config: UnivalConfig) -> str | None:
    """Leave out what the model has no place for (classification heads of other tasks)."""
    unexpected = sorted(tensors.keys() - fresh.keys())
    for name in unexpected:
        del tensors[name]
    return f"left out: {', '.join(unexpected)}" if unexpected else None


REPAIRS = (append_vocabulary, grow_text_positions, grow_image_positions)


# -- the config of a file that does not tell it


def infer_config(file: Mapping[str, Tensor], changes: Mapping[str, Any] | None = None) -> UnivalConfig:
    """Return the architecture that names and shapes of a published file imply.

    Not readable from them, and taken to be the published ones: the split of 59,457 ids (others are told by `changes` or
    by the file's settings), and sample rate, hop (200) and mel range of the audio encoder.
    """
    base, names = CONFIGS["base"], set(file)
    if TOKENS not in names or "encoder.layers.0.self_attn.c_attn" not in names:
        raise UnivalError(f"no UnIVAL checkpoint: there is no {TOKENS}, only {', '.join(sorted(names)[:3])}, ...")
    rows, width = file[TOKENS].shape
    told = {"text_ids": base.text_ids, "codes": base.codes, "bins": base.bins}
    if (counts := Settings.of(file).vocabulary) is not None:
        told |= {"text_ids": rows - sum(counts), "codes": counts[0], "bins": counts[1]}
    told |= {name: value for name, value in (changes or {}).items() if name in told}
    if rows != sum(told.values()):
        raise UnivalError(
            f"a vocabulary of {rows} ids is not {' + '.join(f'{count} {name}' for name, count in told.items())}: give "
            "the config with its text_ids, codes and bins"
        )
    config = replace(
        base,
        **told,
        width=width,
        heads=len(file["encoder.layers.0.self_attn.c_attn"]),
        ffn=len(file["encoder.layers.0.fc1.bias"]),
        encoder_layers=_count(names, r"encoder\.layers\.(\d+)\."),
        decoder_layers=_count(names, r"decoder\.layers\.(\d+)\."),
        image=_infer_resnet(file, "encoder.embed_images."),
        video=_infer_resnet(file, "encoder.embed_videos.") if "encoder.embed_videos.conv1.weight" in names else None,
        audio=_infer_audio(file, "encoder.embed_audios.") if "encoder.embed_audios.bn0.weight" in names else None,
        max_positions=len(file["encoder.embed_positions.weight"]) - 2,
        token_bucket=(len(file["encoder.token_rel_pos_table_list.0.weight"]) + 1) // 2,
        image_bucket=math.isqrt(len(file["encoder.embed_image_positions.weight"]) - 1),
    )
    return replace(config, code_image_size=code_image_size(file[CODE_CELLS])) if CODE_CELLS in names else config


def _count(names: Iterable[str], pattern: str) -> int:
    return len({match[1] for name in names if (match := re.match(pattern, name))})


def _infer_resnet(file: Mapping[str, Tensor], prefix: str) -> ResNetConfig:
    own = {name.removeprefix(prefix): file[name].shape for name in file if name.startswith(prefix)}
    stages = range(1, _count(own, r"layer(\d+)\.") + 1)
    planes = tuple(own[f"layer{stage}.0.conv1.weight"][0] for stage in stages)
    return ResNetConfig(
        depths=tuple(_count(own, rf"layer{stage}\.(\d+)\.") for stage in stages),
        planes=planes,
        expansion=own["layer1.0.conv3.weight"][0] // planes[0],
        groups=planes[0] // own["layer1.0.conv2.weight"][1],
        stem=own["conv1.weight"][0],
        kernel=own["conv1.weight"][-1],
        classes=own["fc.weight"][0] if "fc.weight" in own else 0,
    )


def _infer_audio(file: Mapping[str, Tensor], prefix: str) -> AudioConfig:
    blocks = range(1, _count(file, re.escape(prefix) + r"conv_block(\d+)\.") + 1)
    kernel = file.get(f"{prefix}spectrogram_extractor.stft.conv_real.weight")
    return AudioConfig(
        channels=tuple(len(file[f"{prefix}conv_block{block}.bn2.weight"]) for block in blocks),
        n_mels=len(file[f"{prefix}bn0.weight"]),
        n_fft=AudioConfig().n_fft if kernel is None else kernel.shape[-1],
    )
