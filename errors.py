"""The one error for what the user gave wrong."""


class BadInput(ValueError):  # noqa: N818 (it names what is wrong, not where in the program)
    """What the user gave cannot be used.

    The message is one line that names the thing (file, offset, field, stage, flag) and, where there is one, the way
    out. The command line prints it on stderr and exits with status 2; nothing else catches it. It is a ValueError for
    callers in Python: who catches one here lets BadInput through.
    """
