#!/usr/bin/env bash
# Set up everything and compare the CPU backends; arguments go to `python -m workbench compare`.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh" cpu
exec "$python" -m workbench compare "$@"
