#!/usr/bin/env bash
# Makes .venv beside setup.py and installs the project into it, with the extras named ("test", or nothing).
# Does nothing where that has been done for this setup.py. PYTHON=... chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
extras="${1:-}"

usable() {
  "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

find_python() {
  local candidate
  local candidates=(python3 python3.12 python3.11 python3.13 python)
  if [ -n "${PYTHON:-}" ]; then
    candidates=("$PYTHON")
  fi
  for candidate in "${candidates[@]}"; do
    if command -v "$candidate" >/dev/null && usable "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  echo "No Python 3.11 to 3.13 with venv found (tried ${candidates[*]});" \
    "install one, or name it: PYTHON=/path/to/python3.11 $0" >&2
  exit 2
}

stamp=".venv/installed-${extras:-plain}"
wanted="$(pwd) $(cksum < setup.py)"
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then  # not there, or cut short
    python="$(find_python)"
    echo "Making .venv with $("$python" --version)" >&2
    "$python" -m venv --clear .venv
  fi
  echo "Installing (a minute or two, about 3 GB)" >&2
  .venv/bin/python -m pip install --quiet --disable-pip-version-check \
    --config-settings editable_mode=compat --editable ".${extras:+[$extras]}"
  if [ "$extras" = test ]; then
    # The reference implementation the span corruption tests compare with; its own pins are out of date.
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps t5==0.9.4
  fi
  echo "$wanted" > "$stamp"
fi
