"""The engine: one arithmetic, run over files, state dicts in memory and live models."""
