"""From tab-separated files to batches: `table` (rows), `dataset` (examples), `sampling`, `loading`, `batch`."""
