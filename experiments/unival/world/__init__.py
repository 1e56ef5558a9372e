"""The embedded world: digits, colours, places and motions in images, videos, audio and sentences, from a seed.

`make_world` (build) writes it, `read_world` and `read_rows` (tables) read it, `audit` scores blind guessers on it and
`contact_sheet` (plots) draws it. docs/world.md describes the files.
"""
