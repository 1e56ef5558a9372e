"""The entries of `METHODS`, by group; `words.py` has the parameters and words that several share."""
