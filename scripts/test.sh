#!/usr/bin/env bash
# Set up everything, then lint, check types and run the tests; arguments go to pytest.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh" dev
bin=.venv/bin
$bin/ruff check .
$bin/ruff format --check .
$bin/mypy
exec $bin/python -m pytest "$@"
