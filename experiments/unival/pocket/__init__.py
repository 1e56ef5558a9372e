"""The study's models from nothing on a laptop: world, backbone, pretraining, experts, and a table that compares them.

`make_models` (experts) makes what is missing, `write_table` (table) evaluates it; docs/training.md tells the times.
"""
