"""Captions of a file of their own, in the format of COCO's caption evaluation, in the place of the rows' own."""

from __future__ import annotations

import json
from pathlib import Path

from unival_core.data.table import TsvTable
from unival_core.errors import UnivalError


class ReferencedTable(TsvTable):
    """The first row of every image of a table, with all captions that a JSON file has of the image.

    `uniq_id` of the rows has to be the image's id. Rows of images that the file does not have are left out, as its
    program leaves them out. Raises UnivalError for a file of another format, and where none of its images has a row.
    """

    def __init__(self, table: TsvTable, references: Path) -> None:
        self.table, self.captions = table, read_references(references)
        self.paths, self.columns, self.selected_cols = table.paths, table.columns, table.selected_cols
        found: dict[str, int] = {}
        for row in range(len(table)):
            try:
                found.setdefault(table[row]["uniq_id"].strip(), row)
            except UnivalError:
                found[f"broken {row}"] = row  # told when it is read
        broken = {name for name in found if name.startswith("broken ")}
        self.rows = [row for image, row in found.items() if image in self.captions or image in broken]
        if len(self.rows) == len(broken):
            raise UnivalError(f"{references} has none of the images of {table.paths[0]}: uniq_id has to be an image's")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, str]:
        cells = self.table[self.rows[row]]
        return {**cells, "caption": "&&".join(self.captions[cells["uniq_id"].strip()])}

    def place(self, row: int) -> str:
        """Return the file and line of a row, as file:line."""
        return self.table.place(self.rows[row])

    def folder(self, row: int) -> Path:
        """Return the folder of the file that holds a row."""
        return self.table.folder(self.rows[row])


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
