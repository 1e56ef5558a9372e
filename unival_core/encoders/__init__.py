"""Networks that turn an image, a video or an audio into a map of features; the model turns each cell into a token."""
