"""Tools around a merge: diagnosis, adapters, alignment, BatchNorm, statistics, conversion."""
