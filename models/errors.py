"""The one error a user sees as a single line, and how other errors become one."""


class UserError(Exception):
    """Report a mistake in the input: what is wrong, why, and what to try, in one line."""


def one_line(error: BaseException) -> str:
    """Put an error's words into one line; its kind, if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
