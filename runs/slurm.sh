#!/usr/bin/env bash
#SBATCH --job-name=surgery-r1
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@900
#SBATCH --requeue
#SBATCH --open-mode=append
# runs/stages.sh under Slurm, on one node or several, by torchrun. 15 minutes before the time is up Slurm tells this
# script, training saves at the end of its step, and the job is queued again; it goes on where it was.
#
# NOT YET RUN on a cluster. A test runs it with a srun of its own, the tiny config and two processes on a CPU.
#
#   DATASET=/shared/dataset OUT=/shared/runs/7b NPROC=8 SET="sft.batch_size=8" sbatch --nodes=1 runs/slurm.sh
#
# DATASET, OUT and this folder lie on a disk that all nodes see; the environment with surgery-r1 is active when the job
# is sent (sbatch passes it on). Variables are those of runs/stages.sh; NPROC counts the GPUs of a node.
# A cluster that cannot requeue: send the same line again.
set -euo pipefail

NPROC=${NPROC:-8}
PORT=${PORT:-29500}    # where the nodes meet, on the first of them; free there
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
id="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"

export LAUNCH="srun --kill-on-bad-exit=1 torchrun --nnodes $SLURM_NNODES --nproc_per_node $NPROC --rdzv_backend c10d \
--rdzv_id $id --rdzv_endpoint $head:$PORT"

set -m # a process group of its own, which gets the signal as a whole
runs/stages.sh &
stages=$!
trap 'told=1; kill -TERM -- "-$stages" 2>/dev/null || true' TERM
while true; do
  told=
  status=0
  wait "$stages" || status=$?
  # A signal ends "wait", not what is waited for.
  if [ -z "$told" ]; then break; fi
done
if [ "$status" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$status"
