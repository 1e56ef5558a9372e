"""The study: ratio sweeps, evaluation grids, curves and tables."""
