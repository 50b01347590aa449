"""The pytest plugin: `pytest --workbench` measures the rows of [tool.workbench.track] as benchmarks.

Without that option it does nothing and imports nothing more than this file.
"""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("workbench")
    group.addoption(
        "--workbench",
        action="store_true",
        help="Run the rows of [tool.workbench.track] in pyproject.toml, unless other tests are named.",
    )
    group.addoption(
        "--workbench-against",
        metavar="RUN|FILE|GIT-REV",
        help="Judge each row by an earlier one. Default: by the last one in the results.",
    )
    group.addoption(
        "--workbench-fail-on",
        choices=["regression"],
        help="Fail a row that is slower than the one it is judged by.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Take over, if asked to."""
    if not config.getoption("workbench"):
        return
    from workbench import cli, options

    foreign = cli.find_foreign_package()  # before anything of ours is imported from there
    if foreign:
        pytest.exit(f"Error: {foreign}", returncode=options.USAGE)
    from workbench.tracking.session import TrackSession, plain_errors

    with plain_errors():
        config.pluginmanager.register(TrackSession(config), "workbench-track")
