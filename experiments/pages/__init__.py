"""Pages of a study: its figures, tables and report, from rows alone."""
