#!/usr/bin/env bash
# The main job, from nothing: trains a byte-level T5 on the Python standard library's own text, which is on
# this machine, evaluates it on held-out files and shows what it fills in. Run again, it goes on or says it is done.
#
#   ./scripts/quickstart.sh [MODEL_DIR] [--gin.NAME=VALUE ...]
set -euo pipefail
from="$(pwd)"
cd "$(dirname "$0")/.."
model_dir="$(pwd)/runs/quickstart"
if [ $# -gt 0 ] && [[ "$1" != -* ]]; then
  model_dir="$1"
  [[ "$model_dir" = /* ]] || model_dir="$from/$model_dir"
  shift
fi
./scripts/setup.sh
pretrain="$(pwd)/.venv/bin/pretrain"
trap 'exit 130' INT  # a training run stopped with Ctrl-C has saved; do not go on to evaluate it
"$pretrain" train runs/quickstart.gin --model-dir "$model_dir" "$@"
"$pretrain" evaluate "$model_dir" --examples 3

cat <<EOF

What to try next
  your own text:  "$pretrain" train runs/text_files.gin --gin.FILES="'/path/*.txt'" --model-dir runs/mine
  fill a gap:     "$pretrain" generate "$model_dir" --prompt 'for i in <extra_id_0>(10):'
  see the data:   "$pretrain" inspect runs/quickstart.gin
  the curves:     "$(pwd)/.venv/bin/tensorboard" --logdir "$model_dir/tensorboard"
  a decoder:      "$pretrain" train runs/quickstart_causal_lm.gin --model-dir runs/causal
EOF
