"""The model card of a merged folder: what it was made of and how, never the card of an input."""

from __future__ import annotations

import html
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from merge.checkpoint.hub import hub_id

# The library that a folder with such a file is loaded by.
_LIBRARIES = {
    "model_index.json": "diffusers",
    "modules.json": "sentence-transformers",
    "adapter_config.json": "peft",
    "config.json": "transformers",
}


def card(name: str, files: Collection[str], made: str, parts: Mapping[str, float], recorded: Mapping[str, Any]) -> str:
    """Write the card of an output of these files whose recipe and digests are `recorded`.

    `made` says how in a few words, `parts` are the shares by name. With the front matter that the hub reads.
    """
    named = list(_sources(recorded))
    sources = [source for _, source in named]
    models = [hub_id(source["path"]) or source["name"] for source in sources]
    library = next((word for file, word in _LIBRARIES.items() if file in files), "")
    plain = [model for model, source in zip(models, sources, strict=True) if "recipe" not in source]
    front = ["base_model:", *(f"- {json.dumps(model, ensure_ascii=False)}" for model in dict.fromkeys(plain))]
    front += [f"library_name: {library}"] if library else []
    front += ["tags:", *(["- merge"] if len(sources) > 1 else []), "- unival-merge"]
    rows = [
        f"| {_plain(name)} | {_plain(model)} | {_share(source, parts, recorded)} | `{source['digest']}` |"
        for (name, source), model in zip(named, models, strict=True)
    ]
    version = recorded["provenance"]["unival-merge"]
    lines = ["---", *front, "---", "", f"# {_plain(name)}", ""]
    lines += [f"Made by unival-merge {version}: {_plain(made)}.", ""]
    lines += ["| checkpoint | model | share | digest of its weights |", "|---|---|---|---|", *rows, ""]
    lines += [f"Digest of the weights written: `{recorded['output']['digest']}`", ""]
    if recorded["output"]["notes"]:
        lines += [*(f"- {_plain(note)}" for note in recorded["output"]["notes"]), ""]
    lines += ["The whole recipe, without paths:", "", "```json", _recipe(recorded), "```", ""]
    return "\n".join(lines)


def _sources(recorded: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All inputs with their names, and behind one that a recipe makes those of this: `a/b` is the input b of a."""
    for source in (*([recorded["base"]] if recorded["base"] else []), *recorded["inputs"]):
        name = above + source["name"]
        yield name, source
        if "recipe" in source:
            yield from _sources(source["recipe"], f"{name}/")


def _share(source: Mapping[str, Any], parts: Mapping[str, float], recorded: Mapping[str, Any]) -> str:
    if source is recorded["base"]:
        return "base"
    if all(source is not item for item in recorded["inputs"]):
        return ""  # of another merge
    return f"{parts[source['name']]:.4g}" if source["name"] in parts else ""


def _recipe(recorded: Mapping[str, Any]) -> str:
    """The recipe as JSON, without what only this machine knows."""
    keys = ("method", "parameters", "policy")
    kept = {key: recorded[key] for key in keys}
    inner = {name: source["recipe"] for name, source in _sources(recorded) if "recipe" in source}
    kept |= {f"{name} is made by": {key: made[key] for key in keys} for name, made in inner.items()}
    text = json.dumps(kept, indent=2, ensure_ascii=False)
    return text.replace("```", "'''")


def _plain(text: str) -> str:
    """Text that markdown shows as it is, in one line."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    return "".join(f"\\{sign}" if sign in "\\|*_`[]#" else sign for sign in escaped)
