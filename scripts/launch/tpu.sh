#!/usr/bin/env bash
# A run on all machines of a TPU slice on Google Cloud, where `pretrain[tpu]` is installed on each:
#
#   ./scripts/launch/tpu.sh my-slice us-east5-a train my_run.gin --model-dir /shared/my_run
#
# The run file and the model dir lie on a file system that all machines see.
set -euo pipefail

name=${1:?the name of the TPU}
zone=${2:?its zone}
shift 2
exec gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker all --command "pretrain $(printf '%q ' "$@") --cluster"
