"""For every kind of finding inputs that yield it and inputs that do not, small and made here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import merge
from merge.plan.findings import Finding
from merge.plan.policy import Policy
from merge.tools.diagnose.report import doctor
from tests.merge import broken
from tests.merge.broken import Break
from tests.merge.tokenized import PLAIN, language_model

State = dict[str, Tensor]
LABELS = ["a", "b"]


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


def model(seed: int = 0) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(4, 4, generator=generator) for name in ("embed_tokens.weight", "fc.weight")}


def folder(path: Path, tensors: Mapping[str, Tensor], **files: Any) -> Path:
    """A folder of one safetensors file and JSON files by their names (`config` is config.json)."""
    path.mkdir(parents=True)
    merge.save_checkpoint(tensors, path / "model.safetensors")
    for name, value in files.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    return path


@dataclass(frozen=True)
class Pair:
    """Two inputs that yield a finding and two that do not, made in a folder."""

    yields: Callable[[Path], list[Any]]
    does_not: Callable[[Path], list[Any]]
    policy: Policy | None = None

    def codes(self, place: Path, inputs: Callable[[Path], list[Any]]) -> list[Finding]:
        place.mkdir()
        return list(doctor(inputs(place), names=LABELS, policy=self.policy).findings)


def states(first: State, second: State) -> Callable[[Path], list[Any]]:
    return lambda place: [first, second]


def folders(first: State, second: State, one: Mapping[str, Any], two: Mapping[str, Any]) -> Callable[[Path], list[Any]]:
    return lambda place: [folder(place / "a", first, **one), folder(place / "b", second, **two)]


def configs(one: Mapping[str, Any], two: Mapping[str, Any]) -> Callable[[Path], list[Any]]:
    return folders(model(0), model(1), {"config": one}, {"config": two})


def vocabularies(one: Mapping[str, int], two: Mapping[str, int]) -> Callable[[Path], list[Any]]:
    said = [{"tokenizer": {"model": {"vocab": vocab}}} for vocab in (one, two)]
    return folders(model(0), model(1), *said)


def unions(*plain: Sequence[str], **more: Any) -> Callable[[Path], list[Any]]:
    """Two models with tokenizers of whole words, or of added tokens, that are merged in one vocabulary."""
    return lambda place: [
        language_model(place / name, seed, words, **{key: value[seed] for key, value in more.items()})
        for seed, (name, words) in enumerate(zip("ab", plain, strict=True))
    ]


def scaled(value: float, scale: float) -> State:
    codes = torch.tensor([[1.0, 2.0], [4.0, -3.0]]).mul(value).to(torch.float8_e4m3fn)
    return {"l.weight": codes, "l.weight_scale_inv": torch.tensor([[float(scale)]]), "norm.weight": torch.ones(2)}


def tied(place: Path) -> list[Any]:
    first, second = model(0), model(1)
    first["lm_head.weight"] = first["embed_tokens.weight"]
    return [merge.save_checkpoint(first, place / "a.pt"), merge.save_checkpoint(second, place / "b.pt")]


def tokenizer_models(second: bytes) -> Callable[[Path], list[Any]]:
    def make(place: Path) -> list[Any]:
        pair = [folder(place / name, model(seed)) for seed, name in enumerate("ab")]
        for path, content in zip(pair, (b"rows", second), strict=True):
            (path / "tokenizer.model").write_bytes(content)
        return pair

    return make


def training_files(extra: Mapping[str, Any]) -> Callable[[Path], list[Any]]:
    def make(place: Path) -> list[Any]:
        for seed, name in enumerate("ab"):
            torch.save({"state_dict": model(seed), **extra}, place / f"{name}.pt")
        return [place / "a.pt", place / "b.pt"]

    return make


def head(rows: int) -> State:
    return {"fc.weight": model()["fc.weight"], "classifier.weight": torch.randn(rows, 4)}


LORA = {"l.lora_A.weight": zeros(2, 4), "l.lora_B.weight": zeros(4, 2)}
E8M0 = torch.ones(2, 2).to(torch.float8_e8m0fnu)
IDS = torch.arange(4.0)
SOUND = states(model(0), model(1))

PAIRS = {
    "adapter-factors": Pair(states(LORA, LORA), SOUND),
    "scaled-weights": Pair(states(scaled(1, 1), scaled(2, 0.5)), SOUND),
    "no-arithmetic": Pair(states({"w": E8M0}, {"w": E8M0}), SOUND),
    "placeholders": Pair(
        states({**model(), "w": zeros(0)}, {**model(1), "w": zeros(4, 4)}),
        states({**model(), "w": zeros(0)}, {**model(1), "w": zeros(0)}),
    ),
    "names-prefixed": Pair(states(model(), {f"_orig_mod.{k}": v for k, v in model(1).items()}), SOUND),
    "nothing-shared": Pair(
        states({"a.w": zeros(2)}, {"b.w": zeros(2)}),
        states({"a.w": zeros(2)}, {"a.w": zeros(2), "b.w": zeros(2)}),
        Policy(missing="keep-first"),
    ),
    "tied-and-untied": Pair(tied, SOUND),
    "config-meaning": Pair(
        configs({"num_attention_heads": 2}, {"num_attention_heads": 1}),
        configs({"torch_dtype": "float32"}, {"torch_dtype": "bfloat16"}),
    ),
    "tokens-differ": Pair(
        vocabularies({"<s>": 0, "cat": 1, "dog": 2}, {"<s>": 0, "dog": 1, "cat": 2}),
        vocabularies({"<s>": 0, "cat": 1}, {"<s>": 0, "cat": 1, "dog": 2}),
    ),
    "unlike-vocabularies": Pair(
        unions(("<unk>", "cat"), ("<unk>", "dog")),
        unions(("<unk>", "cat"), ("<unk>", "cat"), added=((), ("<think>",))),
        Policy(tokenizer="union"),
    ),
    "templates-differ": Pair(
        unions(PLAIN, PLAIN, template=("one", "two")),
        unions(PLAIN, PLAIN, template=("one", "")),
        Policy(tokenizer="first"),
    ),
    "labels-differ": Pair(
        folders(head(2), head(2), *({"config": {"id2label": {"0": a, "1": b}}} for a, b in ("cd", "dc"))),
        folders(head(2), head(2), *({"config": {"id2label": {"0": "c", "1": "d"}}} for _ in range(2))),
    ),
    "indices-differ": Pair(
        states({**model(), "e.position_ids": IDS}, {**model(1), "e.position_ids": IDS.flip(0)}),
        states({**model(), "e.position_ids": IDS}, {**model(1), "e.position_ids": IDS.half()}),
    ),
    "config-differs": Pair(
        configs({"rms_norm_eps": 1e-5}, {"rms_norm_eps": 1e-6}), configs({"use_cache": True}, {"use_cache": False})
    ),
    "tokenizers-differ": Pair(tokenizer_models(b"else"), tokenizer_models(b"rows")),
    "codebooks": Pair(
        states(*({**model(seed), "quantize.embedding.weight": model(seed)["fc.weight"]} for seed in (0, 1))),
        states(*({**model(seed), "quantize.embedding.weight": torch.ones(4, 4)} for seed in (0, 1))),
    ),
    "eight-bit-floats": Pair(states(*({"w": torch.ones(4, 4).to(torch.float8_e4m3fn)} for _ in range(2))), SOUND),
    "training-state": Pair(training_files({"optimizer": {"step": 3}}), training_files({"epoch": 3})),
    "names-differ": Pair(states({**model(), "b": zeros(2)}, model(1)), SOUND),
    "heads-differ": Pair(states(head(10), head(12)), states(head(10), head(10))),
    "shapes-differ": Pair(states({**model(), "w": zeros(4, 2)}, {**model(1), "w": zeros(4, 3)}), SOUND),
    "dtypes-differ": Pair(states({"w": zeros(2)}, {"w": zeros(2).half()}), SOUND),
    "integers-differ": Pair(
        states({**model(), "steps": torch.tensor(3)}, {**model(1), "steps": torch.tensor(5)}),
        states({**model(), "steps": torch.tensor(3)}, {**model(1), "steps": torch.tensor(3)}),
    ),
    "codes-differ": Pair(
        states(*({**model(), "w": torch.full((64, 64), code, dtype=torch.int8)} for code in (1, 2))),
        states(*({**model(), "w": torch.full((64, 64), 1, dtype=torch.int8)} for _ in range(2))),
    ),
    "not-finite": Pair(states({"w": torch.tensor([torch.nan])}, {"w": zeros(1)}), SOUND),
    "not-finite-allowed": Pair(
        states({"w": torch.tensor([torch.nan])}, {"w": zeros(1)}), SOUND, Policy(allow_nonfinite=True)
    ),
    "names-partly": Pair(states({**model(), "b": zeros(2)}, model(1)), SOUND, Policy(missing="keep-first")),
}
# The findings of the values: the worlds that `doctor`'s own tests break, one of each kind, and one that is healthy.
MEASURED: dict[str, Break] = {code: spoil for spoil, _, code, _, _ in reversed(broken.BROKEN) if code not in PAIRS}
