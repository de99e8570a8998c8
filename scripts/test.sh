#!/usr/bin/env bash
# Sets up .venv and passes the tests: lint, types, then pytest. --all runs the slow ones too; other arguments
# go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
./scripts/setup.sh test

selection=(-m "not slow")
if [ "${1:-}" = --all ]; then
  selection=()
  shift
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
exec .venv/bin/python -m pytest -n "$(nproc)" --dist worksteal "${selection[@]}" "$@"
