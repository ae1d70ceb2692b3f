#!/usr/bin/env bash
# Trains on spot machines of any cloud that SkyPilot knows, as a managed job (sky.yaml).
#
#   launch/sky.sh ACTION [flags] [-- --config=FILE --workdir=DIR ...]
#
#   launch    submits the run that stands after --; its workdir lies below /mnt/bloodjax
#   status    lists the jobs          logs    follows the job's log          cancel    ends it
#
#   --name=bloodjax                   the job's name
#   --bucket=NAME                     a bucket of yours, mounted at /mnt/bloodjax; made if it is not there
#   --gpus=L4:1 --nodes=1             GPUs of each machine, machines
#   --restarts=20                     how often the run may be started again on its machine; preemptions do not count
#   --dry-run                         prints each command and runs none

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/lib.sh"

name=bloodjax bucket='' gpus=L4:1 nodes=1
parse_action "launch status logs cancel" "name bucket gpus nodes restarts" "$@"
must_be_set name gpus
must_be_whole nodes restarts
need sky "pip install 'skypilot[gcp]' (or aws, azure, ...), then sky check"
cd "${here%/*}" # sky.yaml's workdir is where sky is called

case $action in
  launch)
    must_be_set bucket
    must_train
    run sky jobs launch launch/sky.yaml --yes --name="$name" --gpus="$gpus" --num-nodes="$nodes" \
      --env=BUCKET="$bucket" --env=ARGUMENTS="$(quoted "${arguments[@]}")" --env=RESTARTS="$restarts" \
      --env=PYTHON_VERSION="$PYTHON_VERSION" --env=JAX_VERSION="$JAX_VERSION"
    ;;
  status) run sky jobs queue ;;
  logs) run sky jobs logs --name="$name" ;;
  cancel) run sky jobs cancel --yes --name="$name" ;;
esac
