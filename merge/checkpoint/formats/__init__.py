"""How checkpoints lie on disk: one module per format, all giving the same `TensorEntry` values."""
