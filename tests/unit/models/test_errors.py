"""What is left of a compiler's many lines."""

import pytest

from models.errors import telling_line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("the third pass is broken", "the third pass is broken"),
        ("\n the head  \nand the tail", "the head"),
        ("Compilation error:\nnvcc is missing", "Compilation error: nvcc is missing"),
        ("#ifdef A\nint x;\nnvcc fatal : no compute_90", "#ifdef A ... nvcc fatal : no compute_90"),
        (
            "Ninja failed. Output:\nninja: entering /x\na.cu:1: fatal error: cublasLt.h: No such file",
            "Ninja failed. Output: a.cu:1: fatal error: cublasLt.h: No such file",
        ),
        ("it failed:\nstarting\nwriting: No space left", "it failed: writing: No space left"),
        ("", "no reason given"),
    ],
)  # fmt: skip
def test_the_line_that_says_most_is_kept(text: str, line: str) -> None:
    assert telling_line(text) == line
