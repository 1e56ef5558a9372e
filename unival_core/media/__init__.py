"""Files to model inputs: `image` (pillow), `video` (pillow, PyAV), `audio` (the standard library, soundfile)."""

from pathlib import Path

from unival_core.errors import UnivalError

__all__ = ["read_source"]


def read_source(source: bytes | str | Path) -> tuple[bytes, str]:
    """Return the bytes of a file, given as such or by its path, and what to call it in an error."""
    if isinstance(source, bytes):
        return source, f"the given {len(source)} bytes"
    try:
        return Path(source).read_bytes(), str(source)
    except OSError as error:
        raise UnivalError(f"{source}: {error.strerror}") from None
