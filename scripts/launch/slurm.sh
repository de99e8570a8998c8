#!/usr/bin/env bash
# A run on machines that Slurm gives, a process for each GPU; the model dir lies on a file system they share:
#
#   sbatch --nodes=4 --gpus-per-node=8 --ntasks-per-node=8 scripts/launch/slurm.sh \
#     train my_run.gin --model-dir /shared/my_run
#
# Two minutes before the time of the job is up, the run saves and ends; submit the same again to go on. A job
# that Slurm takes its machines from comes back into the queue by itself.
#SBATCH --job-name=pretrain
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

exec srun --kill-on-bad-exit=1 pretrain "$@" --cluster
