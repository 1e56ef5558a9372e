"""The plan: where each output tensor comes from."""
