"""The one error a user sees as a single line, and how other errors become one."""

import re


class UserError(Exception):
    """Report a mistake in the input: what is wrong, why, and what to try, in one line."""


def telling_line(text: str) -> str:
    """Return the first line that says something, and the first error in the lines behind it, if there is one.

    Compilers often begin with what they compiled, or with a heading.
    """
    first, *others = [line.strip() for line in text.splitlines() if line.strip()] or ["no reason given"]
    told = next((line for line in others if re.search(r"(?i)\b(error|fatal|no space)\b.*\w", line)), None)
    if first.endswith(":") and others:
        return f"{first} {told or others[0]}"
    return f"{first} ... {told}" if told else first


def one_line(error: BaseException) -> str:
    """Put an error's words into one line; its kind, if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
