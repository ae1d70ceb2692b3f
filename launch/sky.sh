#!/usr/bin/env bash
# Trains on spot machines of any cloud that SkyPilot supports, as a managed job (sky.yaml).
#
#   launch/sky.sh ACTION [flags] [-- --config=FILE --workdir=DIR ...]
#
#   launch    submits the run given after --; its workdir must be in a bucket
#   status    lists the jobs          logs    follows the job's log          cancel    ends the job
#
#   --name=bloodjax                   the job's name
#   --gpus=L4:1 --nodes=1             GPUs per machine, number of machines
#   --restarts=20                     how often the run may be restarted on its machine; preemptions do not count
#   --dry-run                         prints the commands and does not run them

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/lib.sh"

name=bloodjax gpus=L4:1 nodes=1
parse_action "launch status logs cancel" "name gpus nodes restarts" "$@"
must_be_set name gpus
must_be_integer nodes restarts
need sky "pip install 'skypilot[gcp]' (or aws, azure, ...), then sky check"
cd "${here%/*}" # sky.yaml's workdir is the current folder

case $action in
  launch)
    must_train
    [[ $in_bucket == true ]] || fail "the machines share no folder: expected --workdir=gs://BUCKET/NAME or s3://BUCKET/NAME"
    run sky jobs launch launch/sky.yaml --yes --name="$name" --gpus="$gpus" --num-nodes="$nodes" \
      --env=ARGUMENTS="$(quoted "${arguments[@]}")" --env=RESTARTS="$restarts" \
      --env=PYTHON_VERSION="$PYTHON_VERSION" --env=JAX_VERSION="$JAX_VERSION"
    ;;
  status) run sky jobs queue ;;
  logs) run sky jobs logs --name="$name" ;;
  cancel) run sky jobs cancel --yes --name="$name" ;;
esac
