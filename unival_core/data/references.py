"""Captions of a file of their own, in the format of COCO's caption evaluation, in the place of the rows' own."""

from __future__ import annotations

import json
from pathlib import Path

from unival_core.data.table import SomeRows, TsvTable
from unival_core.errors import UnivalError


class ReferencedTable(SomeRows):
    """The first row of every image of a table, with all captions that a JSON file has of the image.

    `uniq_id` of the rows has to be the image's id. Rows of images that the file does not have are left out, as its
    program leaves them out. Raises UnivalError for a file of another format, and where none of its images has a row.
    """

    def __init__(self, table: TsvTable, references: Path) -> None:
        self.captions = read_references(references)
        found: dict[str, int] = {}
        for row in range(len(table)):
            try:
                found.setdefault(table[row]["uniq_id"].strip(), row)
            except UnivalError:
                found[f"broken {row}"] = row  # told when it is read
        broken = {name for name in found if name.startswith("broken ")}
        super().__init__(table, [row for image, row in found.items() if image in self.captions or image in broken])
        if len(self) == len(broken):
            raise UnivalError(f"{references} has none of the images of {table.paths[0]}: uniq_id has to be an image's")

    def __getitem__(self, row: int) -> dict[str, str]:
        cells = super().__getitem__(row)
        return {**cells, "caption": "&&".join(self.captions[cells["uniq_id"].strip()])}


def read_references(path: Path) -> dict[str, list[str]]:
    """Read the captions of every image by its id. Raises UnivalError for a file of another format."""
    try:
        captions: dict[str, list[str]] = {}
        for note in json.loads(path.read_bytes())["annotations"]:
            text = " ".join(str(note["caption"]).split()).replace("&&", " ")
            captions.setdefault(str(note["image_id"]), []).append(text)
    except OSError as error:
        raise UnivalError(f"{path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        wanted = "no captions in COCO's format, annotations with image_id and caption"
        raise UnivalError(f"{path}: {wanted} ({type(error).__name__}: {error})") from None
    return captions
