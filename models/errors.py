"""The one error a user sees as a single line."""


class UserError(Exception):
    """Report a mistake in the input: what is wrong, why, and what to try, in one line."""
