#!/usr/bin/env bash
# Submits a training run to SLURM: one process for each GPU, or for each node where there is none.
#
#   launch/slurm.sh [flags] -- --config=FILE --workdir=DIR ...
#
#   --nodes=1 --gpus=1                 nodes, and GPUs of each (0: train on its CPUs)
#   --time=24:00:00 --cpus=8           a job's time limit; CPUs of each process
#   --partition= --account= --mem=     as sbatch has them; left out where empty
#   --name=bloodjax                    the job's name
#   --python=.venv/bin/python          the Python that bloodjax is installed in, seen from the checkout
#   --log=FILE                         by default WORKDIR.slurm-JOB.log, beside the workdir
#   --restarts=20                      how often the job may be put back in the queue
#   --dry-run                          prints the command and submits nothing
#
# 120 s before its time limit the job gets SIGTERM, saves, and goes back in the queue; so it does after a crash or a
# lost node. Checkout, Python, data and workdir must lie where all nodes see them.

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/lib.sh"

nodes=1 gpus=1 time=24:00:00 cpus=8 partition='' account='' mem='' name=bloodjax python=.venv/bin/python log=''
parse "nodes gpus time cpus partition account mem name python log restarts" "$@"
must_be_set time name python
must_be_whole nodes gpus cpus restarts
must_train
need sbatch "launch/slurm.sh runs on a login node of a SLURM cluster"
cd "${here%/*}"
[[ $dry_run == true ]] || command -v "$python" >/dev/null ||
  fail "--python=$python is not there: python3 -m venv .venv && .venv/bin/pip install -e '.[cuda]'"

for argument in "${arguments[@]}"; do
  [[ $argument != --workdir=* ]] || workdir=${argument#--workdir=}
done
# sbatch makes no folder for its log, and without one the job fails without a word.
log=${log:-${workdir%/}.slurm-%j.log}
run mkdir -p "$(dirname "$log")"

options=(--job-name="$name" --nodes="$nodes" --ntasks-per-node="$((gpus > 0 ? gpus : 1))" --cpus-per-task="$cpus")
((gpus == 0)) || options+=(--gpus-per-node="$gpus")
options+=(--time="$time" ${partition:+--partition="$partition"} ${account:+--account="$account"} ${mem:+--mem="$mem"})
run sbatch "${options[@]}" --requeue --signal=B:TERM@120 --open-mode=append --output="$log" --chdir="$PWD" \
  launch/slurm.sbatch "$restarts" "$python" -m bloodjax.main "${arguments[@]}"
