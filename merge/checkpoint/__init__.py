"""Checkpoints: files in and out, formats, digests, outputs that appear whole or not at all."""
