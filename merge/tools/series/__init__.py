"""Averages along a training run: of the files that it leaves, and of a model while it is trained."""
