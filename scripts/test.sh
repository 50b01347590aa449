#!/usr/bin/env bash
# Set up everything, then lint, check types and imports, and run the tests; arguments go to pytest.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh" dev
cd "$root"
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
"$(dirname -- "$python")/lint-imports" --no-cache
# Two tests at a time, not one for each core: what is timed wants a core that is free.
exec "$python" -m pytest -n 2 --dist loadscope --no-loadscope-reorder "$@"
