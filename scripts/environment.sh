# Sourced by the other scripts: makes .venv with this project and the named extras; safe to run again.
# Usage: . scripts/environment.sh EXTRA

cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "Error: $python is no Python 3.11 or newer: set PYTHON to one" >&2
    exit 2
fi
# What the environment was made from: another interpreter, pyproject.toml or extra installs anew.
stamp=".venv/.installed-$1"
wanted="$("$python" -c 'import sys; print(sys.version)') $(cksum pyproject.toml)"
if [ ! -x .venv/bin/python ] || ! .venv/bin/python -c '' 2>/dev/null; then
    rm -rf .venv
    "$python" -m venv .venv
fi
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    .venv/bin/python -m pip install --quiet --editable ".[$1]"
    echo "$wanted" >"$stamp"
fi
