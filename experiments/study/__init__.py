"""The commands `unival-merge study ...`."""
