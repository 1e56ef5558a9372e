"""Chat templates of merged folders: given as text, by a usual name, or as the inputs have them."""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from merge.checkpoint.hub import located
from merge.errors import MergeError, nearest, shortened

TEMPLATES = {
    "chatml": "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
}
_FILE, _CONFIG = "chat_template.jinja", "tokenizer_config.json"


def template_of(given: Any, models: Sequence[Path]) -> str:
    """Give a chat template: the text itself, one of `TEMPLATES`, or for "auto" what most of the models' folders have.

    Empty where none has one. Raises MergeError for an unknown name, a text that is no template, and where as many
    models have one template as another.
    """
    if not isinstance(given, str):
        raise MergeError(f"chat_template must be a text, not {shortened(given)}")
    if given == "auto":
        return _usual(models)
    if given in TEMPLATES:
        return TEMPLATES[given]
    if "{{" not in given and "{%" not in given:
        known = nearest(given, [*TEMPLATES, "auto"])
        raise MergeError(f"chat_template {shortened(given)} is no template, and no known name{known}; give its text")
    _check(given)
    return given


def _check(text: str) -> None:
    """Raise MergeError for a text that is no template, where jinja2 is there to tell."""
    with contextlib.suppress(ImportError):
        import jinja2  # comes with torch

        try:
            jinja2.Environment(extensions=["jinja2.ext.loopcontrols", "jinja2.ext.do"]).parse(text)
        except jinja2.TemplateSyntaxError as error:
            if "unknown tag 'generation'" not in str(error):  # a tag of transformers
                raise MergeError(f"chat_template is no template of Jinja: {error}, line {error.lineno}") from error


def _usual(models: Sequence[Path]) -> str:
    found = {model: text for model in models if (text := _beside(located(model)))}
    counts = Counter(found.values()).most_common()
    if len(counts) > 1 and counts[0][1] == counts[1][1]:
        tied = [path.name for path, text in found.items() if text in (counts[0][0], counts[1][0])]
        raise MergeError(f"chat_template: {' and '.join(tied)} have unlike ones, none more often: give the text of one")
    return counts[0][0] if counts else ""


def _beside(folder: Path) -> str:
    """The chat template beside a model; empty where there is none."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if (folder / _FILE).is_file():
            return (folder / _FILE).read_text(encoding="utf-8")
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        if isinstance(config, dict) and isinstance(config.get("chat_template"), str):
            return config["chat_template"]
    return ""
