"""Examples that share an image: noted once a split, beside the rows, and read back with them."""

import numpy as np
import pytest

from experiments.errors import StudyError
from experiments.grid.clusters import append_clusters, clusters_path, known_clusters, with_clusters


def row(n=4, data="d", split="test"):
    return {"task": "vqa", "split": split, "data": data, "n": n, "key": f"{split}{n}{data}"}


def test_clusters_are_read_back_with_their_rows(tmp_path):
    rows = tmp_path / "rows.jsonl"
    assert known_clusters(rows) == set()
    assert with_clusters([row()], rows) == [row()]
    append_clusters(rows, "k", ("vqa", "test", "d"), ["cat", "dog", "cat", "cow"])
    append_clusters(rows, "l", ("vqa", "novel", "d"), ["cat", "dog", "cow"])
    found = with_clusters([row(), row(3), row(data="new"), row(3, split="novel")], rows)
    assert found[0]["clusters"].tolist() == [0, 1, 0, 2]
    assert found[1:] == [row(3), row(data="new"), row(3, split="novel")]  # others, and examples that are all alone
    assert known_clusters(rows) == {"k", "l"}
    assert clusters_path(rows).stat().st_size < 250


def test_what_is_no_cluster_is_named(tmp_path):
    rows = tmp_path / "rows.jsonl"
    append_clusters(rows, "k", ("vqa", "test", "d"), np.zeros(4))
    clusters_path(rows).write_text(clusters_path(rows).read_text().replace('"n": 4', '"n": 5'))
    with pytest.raises(
        StudyError, match=r"clusters.jsonl:1: not the clusters of examples \(4 numbers for 5 examples\)"
    ):
        with_clusters([row()], rows)
