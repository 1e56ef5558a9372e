"""The one exception class of the package."""


class UnivalError(ValueError):
    """A user's mistake or a bad input, told in one line: what, where, both values, the way out.

    The library raises it; the command line prints it without a traceback and exits with code 2.
    """


class NotFinite(UnivalError):
    """A model's numbers are NaN or infinite, so that it says nothing. Its own class: a study goes on without them."""
