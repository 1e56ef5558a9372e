"""The grid: cells to evaluate, workers, engines, rows."""
