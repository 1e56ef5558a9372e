"""UnIVAL: one encoder-decoder for image, video, audio and text (arXiv 2307.16184)."""
