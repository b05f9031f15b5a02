"""Errors that a user can act on."""

from __future__ import annotations


class UserError(ValueError):
    """A wrong input, told in one line: what is wrong, where it stands, what to do about it.

    The command line prints it as `error: ...` and exits with code 2.
    """
