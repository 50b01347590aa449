"""What is said of the time left, with a clock that is told the time."""

from rich.console import Console

from workbench.progress import Progress, TimeLeft


class Timed:
    """A progress, and the time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.progress = Progress(Console(quiet=True, get_time=lambda: self.now))

    def left_at(self, now: float) -> str:
        self.now = now
        return TimeLeft().render(self.progress.bar.tasks[0]).plain


def test_pieces_of_like_size_take_as_long_as_those_so_far() -> None:
    timed = Timed()
    assert timed.left_at(0) == ""
    timed.progress.expect(4, 10.0)
    assert timed.left_at(0) == "about 40 s left"
    timed.now = 20.0
    timed.progress.advance()
    assert timed.left_at(25.0) == "about 55 s left"


def test_pieces_of_unlike_size_take_what_was_guessed_of_each_at_the_pace_so_far() -> None:
    timed = Timed()
    timed.progress.expect(5, 12.0)  # a look, which is guessed to take none, and rows in two bunches
    timed.now = 3.0
    timed.progress.advance(0.0)
    assert timed.left_at(3.0) == "about 1 min 00 s left"
    timed.progress.begin(20.0)
    assert timed.left_at(13.0) == "about 50 s left"
    timed.now = 40.0
    for _ in range(2):
        timed.progress.advance(10.0)
    assert timed.left_at(40.0) == "about 1 min 20 s left"


def test_what_takes_long_takes_no_time_from_the_pieces_behind_it() -> None:
    timed = Timed()
    timed.progress.expect(11, 10.0)
    for _ in range(8):
        timed.now += 10.0
        timed.progress.advance()
    assert timed.left_at(1000.0) == "about 20 s left"


def test_some_time_is_left_as_long_as_a_piece_is() -> None:
    timed = Timed()
    timed.progress.expect(2, 10.0)
    timed.now = 10.0
    timed.progress.advance()
    assert timed.left_at(100.0) == "about 1 s left"
    timed.progress.advance()
    assert timed.left_at(100.0) == ""


def test_pieces_that_nobody_does_take_no_time() -> None:
    timed = Timed()
    timed.progress.expect(6, 10.0)
    timed.now = 20.0
    timed.progress.advance()
    timed.progress.forgo(2, 10.0)
    assert timed.left_at(20.0) == "about 1 min 00 s left"
