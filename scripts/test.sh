#!/usr/bin/env bash
# Sets up .venv and passes the tests: lint, types, then pytest. --all runs the slow ones too; other arguments
# go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
./scripts/setup.sh test

marked="not slow"
if [ "${1:-}" = --all ]; then
  marked=""
  shift
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
exec .venv/bin/python -m pytest -n "$(getconf _NPROCESSORS_ONLN)" --dist worksteal -m "$marked" "$@"
