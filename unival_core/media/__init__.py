"""Files to model inputs: `image` (pillow), `video` (pillow, PyAV), `audio` (the standard library, soundfile)."""
