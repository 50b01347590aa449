# Sourced by the other scripts: makes .venv with this project and the named extra; safe to run again.
# Usage: . environment.sh EXTRA. Sets $root, this repository, and $python, the interpreter of .venv.

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
python=$root/.venv/bin/python
unfinished=$root/.venv/.unfinished # there while .venv is written to, so also after that was killed

version() { "$1" -c 'import sys; print(sys.version)' 2>/dev/null; }

usable() {
    [ ! -e "$unfinished" ] && "$python" -c 'import pip' 2>/dev/null || return 1
    # Whatever `python3` is by now, an environment that works stays; a PYTHON that is asked for is taken.
    [ -z "${PYTHON:-}" ] || [ "$(version "$PYTHON")" = "$(version "$python")" ]
}

create() {
    rm -rf "$root/.venv"
    mkdir "$root/.venv"
    touch "$unfinished"
    "${PYTHON:-python3}" -m venv "$root/.venv"
}

# What an installation was made from: another folder, interpreter or pyproject.toml installs anew.
recipe() { echo "$root $(version "$python") $(cksum <"$root/pyproject.toml")"; }

installed() {
    local extra
    for extra in "$1" dev; do # dev contains the others
        [ "$(cat "$root/.venv/.installed-$extra" 2>/dev/null)" != "$(recipe)" ] || return 0
    done
    return 1
}

install() {
    echo "installing into $root/.venv: some minutes, once" >&2
    touch "$unfinished"
    # A pip that fails leaves in order what was there, one that is killed may not.
    "$python" -m pip install --quiet --editable "${root}[$1]" || { rm "$unfinished"; exit 1; }
    recipe >"$root/.venv/.installed-$1"
}

set_up() {
    trap 'exit 130' INT # or bash goes on when pip ends by itself after Ctrl-C
    usable || create
    installed "$1" || install "$1"
    rm -f "$unfinished"
}

if [ -n "${PYTHON:-}" ] || ! usable; then
    if ! "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "Error: ${PYTHON:-python3} is no Python 3.11 or newer: set PYTHON to one" >&2
        exit 2
    fi
fi
# Where there is flock, a second script waits here for the first. What goes to stdout is the command's alone.
(flock 9 2>/dev/null || true; set_up "$1") 9<"$root" >&2
