"""What Ctrl-C leaves of a command's work."""

import sys
from typing import Any, NoReturn

import pytest

from workbench import cli


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("compare", f"stopped; {cli.GOES_ON.format('--again or --against')}"),
        ("calibrate", f"stopped; {cli.GOES_ON.format('--again')}"),
        ("track", "stopped; the same command begins anew"),
        ("build", "stopped; engines that were finished are kept, and the same command builds the others"),
        ("report", "stopped"),
    ],
)
def test_each_command_says_what_becomes_of_its_own_work(
    command: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(**_: Any) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", stop)
    monkeypatch.setattr(sys, "argv", ["workbench", command])
    assert cli.run() == 130
    assert capsys.readouterr().err == f"{line}\n"
