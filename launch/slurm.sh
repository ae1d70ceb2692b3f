#!/usr/bin/env bash
# Submits a training run to SLURM: one process per GPU, or per node without GPUs.
#
#   launch/slurm.sh [flags] -- --config=FILE --workdir=DIR ...
#
#   --nodes=1 --gpus=1                 nodes, and GPUs per node (0: train on the CPUs)
#   --time=24:00:00 --cpus=8           time limit of the job; CPUs per process
#   --partition= --account= --mem=     sbatch's options; not passed if empty
#   --name=bloodjax                    the job's name
#   --python=.venv/bin/python          a Python with bloodjax installed, relative to the checkout
#   --log=FILE                         default: WORKDIR.slurm-JOB.log, next to the workdir; in the checkout if that is in a
#                                      bucket
#   --restarts=20                      how often the job may be requeued
#   --dry-run                          prints the command and does not submit it
#
# 120 s before its time limit the job receives SIGTERM, saves a checkpoint and is requeued. It is also requeued after a
# crash or a lost node. Checkout and Python must be in folders that all nodes share; data and workdir too, or in a bucket.

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/lib.sh"

nodes=1 gpus=1 time=24:00:00 cpus=8 partition='' account='' mem='' name=bloodjax python=.venv/bin/python log=''
parse "nodes gpus time cpus partition account mem name python log restarts" "$@"
must_be_set time name python
must_be_integer nodes gpus cpus restarts
must_train
need sbatch "launch/slurm.sh runs on a login node of a SLURM cluster"
cd "${here%/*}"
[[ $dry_run == true ]] || command -v "$python" >/dev/null ||
  fail "--python=$python does not exist: python3 -m venv .venv && .venv/bin/pip install -e '.[cuda,remote]'"

for argument in "${arguments[@]}"; do
  [[ $argument != --workdir=* ]] || workdir=${argument#--workdir=}
done
[[ $in_bucket == false ]] || workdir=${workdir%/} workdir=$PWD/${workdir##*/}
slurm_log "%j"

options=(--job-name="$name" --nodes="$nodes" --ntasks-per-node="$((gpus > 0 ? gpus : 1))" --cpus-per-task="$cpus")
((gpus == 0)) || options+=(--gpus-per-node="$gpus")
options+=(--time="$time" ${partition:+--partition="$partition"} ${account:+--account="$account"} ${mem:+--mem="$mem"})
run sbatch "${options[@]}" --requeue --signal=B:TERM@120 --open-mode=append --output="$log" --chdir="$PWD" \
  launch/slurm.sbatch "$restarts" "$python" -m bloodjax.main "${arguments[@]}"
