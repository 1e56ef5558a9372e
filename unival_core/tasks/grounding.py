"""Visual grounding (RefCOCO, RefCOCO+, RefCOCOg): the box of what a text describes, as four bins."""

from random import Random

from unival_core.data.cells import region
from unival_core.data.task import MAX_WORDS, Box, Row, Task
from unival_core.decoding import GenerationOptions
from unival_core.text import clean_caption


def prompt(row: Row) -> str:
    """The description, quoted."""
    return f' which region does the text " {clean_caption(row["text"], MAX_WORDS)} " describe?'


def target(row: Row, generator: Random | None) -> Box:
    """The box of the row."""
    return region(row["box"])


def reference(row: Row) -> Box:
    """The box before it is rounded to bins."""
    return region(row["box"])


TASK = Task(
    name="grounding",
    columns=("uniq_id", "media", "text", "box"),
    selected_cols=(0, 4, 2, 3),
    prompt=prompt,
    target=target,
    reference=reference,
    metrics=("Acc@0.5",),
    generation=GenerationOptions(beam=5, min_len=4, max_len_b=4, no_repeat_ngram=3),
    side=512,
    writes="box",
    asks="text",
)
