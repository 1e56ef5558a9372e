"""What a name that a pickle may not mention says of the file that mentions it, and the way out."""

from __future__ import annotations

import re

_PROGRAM = "load it with the program that wrote it"
_QUANTISED = "its tensors are quantised: merge the weights that they were made of"
# By a regular expression of the name.
REFUSED = {
    r"deepspeed\..*": "DeepSpeed wrote it: `python zero_to_fp32.py FOLDER OUTPUT`, which lies beside it, gathers the "
    "weights",
    r"torch\._utils\._rebuild_qtensor|torch\.(ao|quantization)\..*|torch\.(q\w+|per_\w+)": _QUANTISED,
    r"(torchao|bitsandbytes|quanto|optimum|hqq|modelopt)\..*": _QUANTISED,
    r"torch\._utils\._rebuild_sparse\w+": "its tensors are sparse: save them again after to_dense()",
    r"torch\._utils\._rebuild_nested\w+": "its tensors are nested: save them again after to_padded_tensor()",
    r"torch\._utils\._rebuild_meta\w+": "its tensors are on the meta device and have no values",
    r"torch\._utils\._rebuild_wrapper_subclass|torch\.distributed\..*": "its tensors are parts of what lies on several "
    "processes: gather them with get_model_state_dict and full_state_dict=True, or save them with "
    "torch.distributed.checkpoint and give that folder",
    r"torch\.storage\._load_from_bytes": "pickle.dump wrote it, not torch.save: "
    "torch.save(pickle.load(open(FILE, 'rb')), OUTPUT), if you trust it",
    r"models\.(yolo|common)\..*": "it holds a whole model: if you trust it, in the clone of YOLOv5 "
    "torch.save(torch.load(FILE, weights_only=False)['model'].float().state_dict(), OUTPUT)",
    r"ultralytics\..*": "it holds a whole model: if you trust it, "
    "torch.save(YOLO(FILE).model.float().state_dict(), OUTPUT)",
    r"transformers\.(training_args|trainer)\w*\..*": "it holds a training's arguments: give the model's file",
    r"torch\.optim\..*": f"it holds a whole optimizer: if you trust it, {_PROGRAM} and save only the weights",
    r"(torch\.nn|torch\.fx|timm|torchvision|segmentation_models_pytorch|__main__)\..*|the class .*": "it holds a whole "
    f"model or other objects: if you trust it, {_PROGRAM} and save model.state_dict()",
    r".*": f"if you trust the file, {_PROGRAM} and save only its tensors",
}


def advice_for(name: str) -> str:
    """Give the way out for a file that mentions this name."""
    return next(advice for names, advice in REFUSED.items() if re.fullmatch(names, name, re.DOTALL))
