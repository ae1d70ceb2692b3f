#!/usr/bin/env bash
# Submits the workers of a sweep to SLURM: a job array, one worker a task, each with GPUs of its own.
#
#   launch/slurm_sweep.sh [flags] -- --config=FILE --trials=N --workdir=DIR ...
#
#   --workers=4 --gpus=1               tasks of the array, and GPUs of each (0: train on the CPUs)
#   --time=24:00:00 --cpus=8           time limit of a task; CPUs per worker
#   --partition= --account= --mem=     sbatch's options; not passed if empty
#   --name=bloodjax-sweep              the job's name
#   --python=.venv/bin/python          a Python with bloodjax installed, relative to the checkout
#   --log=FILE                         default: WORKDIR.slurm-JOB_TASK.log, next to the workdir
#   --restarts=20                      how often a task may be requeued
#   --dry-run                          prints the command and does not submit it
#
# Without --storage the trials are stored in the journal WORKDIR/sweep.log, which several machines can share. 120 s before
# its time limit a task receives SIGTERM, saves its trial and is requeued. The workers may end in any order; the last one
# writes the page. Checkout, Python, data and workdir must be in folders that all nodes share.

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/lib.sh"

workers=4 gpus=1 time=24:00:00 cpus=8 partition='' account='' mem='' name=bloodjax-sweep python=.venv/bin/python log=''
parse "workers gpus time cpus partition account mem name python log restarts" "$@"
must_be_set time name python
must_be_integer workers gpus cpus restarts
((workers > 0)) || fail "--workers=$workers, expected at least 1"
must_sweep
need sbatch "launch/slurm_sweep.sh runs on a login node of a SLURM cluster"
cd "${here%/*}"
[[ $dry_run == true ]] || command -v "$python" >/dev/null ||
  fail "--python=$python does not exist: python3 -m venv .venv && .venv/bin/pip install -e '.[cuda,sweep]'"

slurm_log "%A_%a"

options=(--job-name="$name" --array="1-$workers" --nodes=1 --ntasks=1 --cpus-per-task="$cpus")
((gpus == 0)) || options+=(--gpus-per-task="$gpus")
options+=(--time="$time" ${partition:+--partition="$partition"} ${account:+--account="$account"} ${mem:+--mem="$mem"})
run sbatch "${options[@]}" --requeue --signal=B:TERM@120 --open-mode=append --output="$log" --chdir="$PWD" \
  launch/slurm.sbatch "$restarts" "$python" -m bloodjax.sweep "${arguments[@]}"
