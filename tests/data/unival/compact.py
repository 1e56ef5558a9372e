"""Makes the small recordings kept here from the full ones: token ids and logits; media are redrawn from their seeds.

python tests/data/unival/compact.py FOLDER_OF_FULL_RECORDINGS
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

CASES = ("tiny_text", "tiny_image", "tiny_video", "tiny_audio", "tiny_code_mixed")
MEDIA = {"tiny_image": ("image", 1.0), "tiny_video": ("video", 1.0), "tiny_audio": ("audio", 0.2)}
MEDIA["tiny_code_mixed"] = MEDIA["tiny_image"]
KEPT = ("in.src_tokens", "in.prev_output_tokens", "in.code_masks", "logits")
# Of the image tokenizer and of its sampling: tensors whose names begin so, and all of the description but "stages".
DRAWN = {
    "vqgan_tiny": ("decode1.", "encode1.in", "encode1.codes", "encode1.sampled_codes"),
    "vqgan_tiny_quiet": ("decode0.in", "decode0.image", "encode0.in", "encode0.codes"),
    "vqgan_tiny_uneven": ("decode0.in", "decode0.image"),
    "vqgan_sampling": ("",),
    "vqgan_generation": ("in.", "run0", "run1.tokens", "run1.pos", "run1.score", "run2"),
}


def main(source: Path) -> None:
    folder = Path(__file__).parent
    for case in CASES:
        tensors = load_file(source / f"golden_{case}.safetensors")
        note = json.loads((source / f"golden_{case}.json").read_text())
        kept = {name: tensors[name] for name in KEPT if name in tensors}
        summary = {"tensors": {name: note["tensors"][name] for name in kept}}
        if case in MEDIA:
            kind, scale = MEDIA[case]
            media, seed = tensors[f"in.patch_{kind}s"], note["seeds"][kind]
            drawn = scale * torch.randn(media.shape, generator=torch.Generator().manual_seed(seed))
            if not torch.equal(drawn, media):
                raise SystemExit(f"{case}: the {kind}s are not {scale} x randn of seed {seed}")
            summary["media"] = {"kind": kind, "seed": seed, "scale": scale, "shape": list(media.shape)}
        save_file(kept, folder / f"golden_{case}.safetensors")
        (folder / f"golden_{case}.json").write_text(json.dumps(summary, indent=1) + "\n")
    for case, begins in DRAWN.items():
        tensors = load_file(source / f"golden_{case}.safetensors")
        save_file({k: v for k, v in tensors.items() if k.startswith(begins)}, folder / f"golden_{case}.safetensors")
        note = json.loads((source / f"golden_{case}.json").read_text())
        kept = {key: without_stages(value) for key, value in note.items() if key != "keys"}
        (folder / f"golden_{case}.json").write_text(json.dumps(kept) + "\n")


def without_stages(value: object) -> object:
    """What was said of every stage is left out."""
    if isinstance(value, list):
        return [without_stages(one) for one in value]
    if isinstance(value, dict):
        return {key: without_stages(one) for key, one in value.items() if key not in ("stages", "order")}
    return value


if __name__ == "__main__":
    main(Path(sys.argv[1]))
