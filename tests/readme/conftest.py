"""The same way to run whole commands as in tests/cli, with a cache that these tests share."""

from tests.cli.conftest import cache, environment

__all__ = ["cache", "environment"]
