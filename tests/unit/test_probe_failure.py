"""What a probe says of a framework that is not there, or only half."""

import pytest

from backends.probe_failure import CAUSE_LENGTH, describe_failure


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ModuleNotFoundError("No module named 'jax'", name="jax"), "jax is not installed"),
        (
            ModuleNotFoundError("jax requires jaxlib"),
            "xla cannot be used: ModuleNotFoundError: jax requires jaxlib",
        ),
        (OSError("libcuda.so.1: cannot\nopen"), "xla cannot be used: OSError: libcuda.so.1: cannot open"),
    ],
)
def test_a_reason_names_what_is_missing_or_how_it_failed(error: Exception, reason: str) -> None:
    found = describe_failure("xla", error, "pip install it")
    assert (found.reason, found.install) == (reason, "pip install it")


def test_a_reason_is_one_line_of_some_length_at_most() -> None:
    reason = describe_failure("xla", RuntimeError("no \n" * 1000), "").reason or ""
    assert len(reason) < CAUSE_LENGTH + 40
    assert "\n" not in reason
