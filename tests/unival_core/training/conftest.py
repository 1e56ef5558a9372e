"""The tables that every run reads, once for all tests of a module."""

import pytest

from tests.unival_core.training.made_run import write_tables


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    write_tables(folder)
    return folder
