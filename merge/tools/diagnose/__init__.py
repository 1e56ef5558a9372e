"""Look at checkpoints before merging them: what they hold, how they differ, whether a merge is likely to work."""
