"""The files of a run: what it is, where it stands, what it measured. A kill at any moment loses nothing but time.

run.json                   what is trained how; another run does not go on in this folder
state.pt                   optimiser, sampler, averages; names the weights it belongs to
update-00000200.safetensors   those weights
metrics.csv                one row an update
part-1-of-10.safetensors   weights on the way, where they are to be kept
best.safetensors           best by validation, if there is one
last.safetensors           there when the run is finished; state.pt and its weights are gone then
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from unival_core.errors import UnivalError

BEST, LAST = "best.safetensors", "last.safetensors"
_STATE, _RUN, _METRICS = "state.pt", "run.json", "metrics.csv"
_WEIGHTS, _PARTS = "update-*.safetensors", "part-*-of-*.safetensors"


class RunFolder:
    """The folder of one run."""

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder)
        self.best, self.last = self.path / BEST, self.path / LAST
        self.metrics = self.path / _METRICS

    def open(self, run: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Make the folder for this run, or finds the same run in it; UnivalError if it holds anything else."""
        self.path.mkdir(parents=True, exist_ok=True)
        record, wanted = self.path / _RUN, json.loads(json.dumps(run))
        if overwrite:
            self._clear()
        elif record.exists():
            there = self.record()
            if differing := sorted(name for name in {*there, *wanted} if there.get(name) != wanted.get(name)):
                name = differing[0]
                raise UnivalError(
                    f"{self.path} holds another run ({name} {there.get(name)} there, {wanted.get(name)} here): "
                    "choose another folder or pass --overwrite"
                )
            return
        elif any(self.path.iterdir()):
            raise UnivalError(f"{self.path} is not empty and holds no run: choose another folder")
        partial = record.with_name(f"{_RUN}.partial")
        partial.write_text(json.dumps(wanted, indent=1) + "\n")
        partial.replace(record)

    def record(self) -> dict[str, Any]:
        """Return what the run in the folder is; UnivalError where its record is broken."""
        path = self.path / _RUN
        try:
            there = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise UnivalError(f"{path} cannot be read ({error}): remove {self.path} to train anew") from None
        if not (isinstance(there, dict) and isinstance(there.get("options"), dict)):
            raise UnivalError(f"{path} is not the record of a run: remove {self.path} to train anew")
        return there

    def weights(self, update: int) -> Path:
        """Return the file of the weights after an update."""
        return self.path / _WEIGHTS.replace("*", f"{update:08d}")

    def part(self, number: int, parts: int) -> Path:
        """Return the file of the weights at the end of one of so many equal parts of the updates."""
        return self.path / f"part-{number}-of-{parts}.safetensors"

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Make `state`, with the `weights(state["update"])` written before, the place where the run goes on."""
        partial = self.path / f"{_STATE}.partial"
        with partial.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path / _STATE)
        self._forget_weights(self.weights(state["update"]))

    def load_state(self) -> dict[str, Any] | None:
        """Tell where the run stands; None at its beginning. UnivalError where the file is broken."""
        file = self.path / _STATE
        if not file.exists():
            return None
        try:
            return torch.load(file, weights_only=True, map_location="cpu")
        except Exception as error:  # of a broken file, torch raises what its parts happen to
            first = str(error).partition("\n")[0]
            raise UnivalError(f"{file} cannot be read ({first}): remove it to train from the first update") from None

    def finish(self) -> None:
        """Remove what only a run under way needs."""
        (self.path / _STATE).unlink(missing_ok=True)
        self._forget_weights(None)

    def _forget_weights(self, kept: Path | None) -> None:
        for file in self.path.glob(_WEIGHTS):
            if file != kept:
                file.unlink()

    def _clear(self) -> None:
        """Remove the files of a run, and nothing else."""
        self._forget_weights(None)
        for file in self.path.glob(_PARTS):
            file.unlink()
        for name in (_STATE, _RUN, _METRICS, BEST, LAST):
            (self.path / name).unlink(missing_ok=True)


class MetricsFile:
    """A CSV that grows by one row an update; rows that a resumed run will write again are cut off first."""

    def __init__(self, path: Path, columns: list[str], update: int) -> None:
        kept: list[dict[str, str]] = []
        if path.exists():
            try:
                with path.open(newline="") as file:
                    kept = [
                        row for row in csv.DictReader(file) if None not in row.values() and int(row["update"]) <= update
                    ]
            except (OSError, ValueError, KeyError, csv.Error) as error:
                raise UnivalError(f"{path} is not the table of a run ({error}): move it away") from None
        self._file = path.with_suffix(".partial").open("w", newline="")
        self._writer = csv.DictWriter(self._file, columns, lineterminator="\n")
        self._writer.writeheader()
        self._writer.writerows(kept)
        self._file.flush()
        path.with_suffix(".partial").replace(path)

    def write(self, row: Mapping[str, object]) -> None:
        """Add a row; floats with six digits."""
        self._writer.writerow({name: f"{v:.6g}" if isinstance(v, float) else v for name, v in row.items()})
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
