"""Intervals, tests, curves, fronts, selection."""
