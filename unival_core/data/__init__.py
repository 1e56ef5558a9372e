"""From tab-separated files to batches: `table` (rows), `task`, `dataset` (examples), `sampling`, `loading`, `batch`."""

from unival_core.data.answers import allowed_answers, load_answers, stored_answers
from unival_core.data.batch import Batch, Example, collate
from unival_core.data.dataset import TaskDataset
from unival_core.data.media_cache import MediaCache
from unival_core.data.reader import MediaReader
from unival_core.data.references import ReferencedTable
from unival_core.data.table import SomeRows, TsvTable
from unival_core.data.task import Box, Codes, InStage, Published, Row, Task, texts_of

__all__ = [
    "Batch", "Box", "Codes", "Example", "InStage", "MediaCache", "MediaReader", "Published", "ReferencedTable",
    "Row", "SomeRows", "Task", "TaskDataset", "TsvTable", "allowed_answers", "collate", "load_answers",
    "stored_answers", "texts_of",
]  # fmt: skip
