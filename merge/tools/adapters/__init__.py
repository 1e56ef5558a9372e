"""Low-rank adapters (LoRA, arXiv 2106.09685) in peft's folders: read, merged exactly, recompressed, added to a base."""
