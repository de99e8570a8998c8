#!/usr/bin/env bash
# Several processes of one run on this machine, as several machines would run it:
#
#   ./scripts/launch/local.sh 2 train runs/quickstart.gin --model-dir runs/two
#
# JAX_NUM_CPU_DEVICES says how many simulated devices each has. Ctrl-C and SIGTERM go to all of them; the
# exit code is 0, or that of the first that failed.
set -euo pipefail

count=${1:?how many processes}
shift
cd "$(dirname "$0")/../.." && root=$PWD && cd "$OLDPWD"
pretrain=$(command -v pretrain || echo "$root/.venv/bin/pretrain")
port=$("$(dirname "$pretrain")/python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')

processes=()
for ((index = 0; index < count; index++)); do
  "$pretrain" "$@" --coordinator "localhost:$port" --processes "$count" --process "$index" &
  processes+=($!)
done
trap 'kill -TERM "${processes[@]}" 2>/dev/null || true' INT TERM

failed=0
for process in "${processes[@]}"; do
  code=0
  wait "$process" || code=$?
  while kill -0 "$process" 2>/dev/null; do # a signal ended the waiting, not the process
    code=0
    wait "$process" || code=$?
  done
  ((failed == 0)) && failed=$code
done
exit "$failed"
