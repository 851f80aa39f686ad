"""What ends the work in words: the input is wrong, or the run failed although it was right.

Messages name the options of the command line, which all of this is asked by; `cli/errors.py` turns
them into an exit code.
"""

from __future__ import annotations


class CommandError(Exception):
    """An end that the user is told of in words, without a traceback."""

    exit_code = 1


class BadInput(CommandError):
    """An option or argument that is not accepted: names it, its value, and what is."""

    exit_code = 2


class RunFailed(CommandError):
    """The input was right, and yet it went wrong."""
