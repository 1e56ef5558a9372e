"""The one exception class of the package."""


class StudyError(ValueError):
    """A user's mistake or a bad input, told in one line: what, where, both values, the way out.

    The library raises it; the command line prints it without a traceback and exits with code 2.
    """
