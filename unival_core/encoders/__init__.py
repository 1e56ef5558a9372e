"""Networks that turn a picture, a film or a sound into a map of features; the model turns each cell into a token."""
