#!/usr/bin/env bash
# Trains on a Cloud TPU VM: one machine, or a pod slice of several.
#
#   launch/tpu_vm.sh ACTION --zone=ZONE [flags] [-- --config=FILE --workdir=DIR ...]
#
#   create    creates the TPU VM                queue   requests it through the queue (pass --queued from then on)
#   setup     on all workers: copies this checkout, installs it
#   run       on all workers: starts the training given after --, in the background
#   logs      follows worker 0's log            status  prints the state of the run on each worker
#   watch     create, setup and run, repeated after each preemption or crash until the run is done
#   stop      sends SIGTERM to the run on all workers: it saves a checkpoint and exits
#   delete    deletes the TPU VM and its queued request
#
#   --name=bloodjax --zone=ZONE --project=PROJECT      the TPU VM; the default project is gcloud's
#   --accelerator=v5litepod-8 --version=v2-alpha-tpuv5-lite
#   --spot                                             cheaper, but can be preempted at any time
#   --queued                                           it was requested by `queue`
#   --nfs=HOST:/SHARE --mount=/mnt/bloodjax            setup also mounts a share, if workdir and data are not in a bucket
#   --restarts=20 --poll=60                            watch: how often it may restart the run; seconds between checks
#   --dry-run                                          prints the commands and does not run them

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/lib.sh"

name=bloodjax zone='' project='' accelerator=v5litepod-8 version=v2-alpha-tpuv5-lite spot='' queued=''
nfs='' mount=/mnt/bloodjax poll=60

tpus() { run gcloud compute tpus "$@" "${where[@]}"; }

on_workers() { tpus tpu-vm ssh "$name" --worker="$1" --command="$2"; }

create() {
  if [[ $queued == true ]]; then
    tpus queued-resources create "$name-queue" --node-id="$name" --accelerator-type="$accelerator" \
      --runtime-version="$version" ${spot:+--spot}
  else
    tpus tpu-vm create "$name" --accelerator-type="$accelerator" --version="$version" ${spot:+--spot}
  fi
}

delete() {
  if [[ $queued == true ]]; then
    tpus queued-resources delete "$name-queue" --force --quiet # --force also deletes the TPU VM
  else
    tpus tpu-vm delete "$name" --quiet
  fi
}

# Copies what the installation and a run need, as one archive.
setup() {
  local folder=/tmp failed=0
  [[ $dry_run == true ]] || folder=$(mktemp -d)
  run tar -C "${here%/*}" --exclude=__pycache__ -czf "$folder/bloodjax.tar.gz" \
    README.md LICENSE pyproject.toml setup.cfg bloodjax configs launch &&
    tpus tpu-vm scp "$folder/bloodjax.tar.gz" "$name:" --worker=all &&
    on_workers all "$(setup_commands)" || failed=$?
  [[ $dry_run == true ]] || rm -r "$folder"
  return "$failed"
}

# setup_commands: prints the commands for a worker. They can be repeated.
setup_commands() {
  echo "set -e"
  if [[ -n $nfs ]]; then
    echo "command -v mount.nfs >/dev/null || { sudo apt-get update;" \
      "sudo apt-get -o DPkg::Lock::Timeout=300 install -y nfs-common; }"
    echo "sudo mkdir -p $(quoted "$mount")"
    # NFS 3 never releases the locks of a preempted machine, hence nolock. NFS 4 releases them and ignores the option.
    echo "mountpoint -q $(quoted "$mount") || sudo mount -t nfs -o nolock $(quoted "$nfs" "$mount")"
  fi
  echo "mkdir -p bloodjax && tar -xzf bloodjax.tar.gz -C bloodjax"
  # The images' Python is too old; uv installs a newer one. The variable allows this use of pip under Debian.
  echo "PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv"
  echo "[ -x venv/bin/python ] || python3 -m uv venv --python $PYTHON_VERSION venv"
  echo "python3 -m uv pip install --python venv/bin/python -e './bloodjax[tpu,remote]' jax==$JAX_VERSION"
}

start() {
  on_workers all "cd bloodjax && launch/worker.sh start -- ../venv/bin/python -m bloodjax.main $(quoted "${arguments[@]}")"
}

# query COMMAND...: prints its output; "MISSING" if the resource does not exist, "UNKNOWN" after any other failure.
query() {
  local said errors
  errors=$(mktemp)
  # gcloud prints warnings beside an answer, such as about its Python.
  if said=$("$@" 2>"$errors"); then
    echo "$said"
  elif said+=$(cat "$errors") && [[ $said == *NOT_FOUND* ]]; then
    echo MISSING
  else
    say "$said"
    echo UNKNOWN
  fi
  rm -f "$errors"
}

# machine: prints the state of the TPU VM, or of its queued request while that is pending.
machine() {
  if [[ $queued == true ]]; then
    local place
    place=$(query tpus queued-resources describe "$name-queue" --format='value(state.state)')
    [[ $place == ACTIVE ]] || {
      echo "$place"
      return
    }
  fi
  query tpus tpu-vm describe "$name" --format='value(state)'
}

# training: prints the state of the run over all workers: running, done, mistake, again or unknown.
training() {
  local found
  found=$(query on_workers all \
    "[ ! -x bloodjax/launch/worker.sh ] && echo bloodjax-status absent || bloodjax/launch/worker.sh status")
  found=$(sed -n 's/^.*bloodjax-status //p' <<<"$found" | tr -d '\r' | sort -u)
  if [[ -z $found ]]; then
    echo unknown
  elif grep -qx running <<<"$found"; then
    echo running # if one has ended, the others end within a minute, and then all are restarted together
  elif grep -qx 2 <<<"$found"; then
    echo mistake
  elif [[ $found == 0 ]]; then
    echo "done"
  else
    echo again
  fi
}

set_up_and_start() { setup && start; }

# Starts the run, unless it was started too often. If that fails, for example because the machine was preempted, the
# next check finds out why.
start_again() {
  ((started <= restarts)) || {
    say "not restarted (--restarts=$restarts)"
    exit 75
  }
  started=$((started + 1))
  set_up_and_start || say "failed to start; checking again"
}

# Recreates the machine. It tries again if the zone has no capacity, and gives up after a wrong flag.
create_again() {
  local said
  [[ $1 == MISSING ]] || delete || say "not deleted"
  said=$(create 2>&1) || case $said in
    *INVALID_ARGUMENT* | *PERMISSION_DENIED*) fail "not created: ${said//$'\n'/ }" ;;
    *) say "not created, trying again: $said" ;;
  esac
}

watch() {
  local state
  started=0
  state=$(machine)
  [[ $state != UNKNOWN ]] || fail "gcloud could not report whether $name exists (see above)"
  while true; do
    say "$(date +%FT%T) $name is $state"
    case $state in
      READY)
        case $(training) in
          done)
            say "the run is done"
            exit 0
            ;;
          mistake)
            say "the run exited with status 2, a user error; see launch/tpu_vm.sh logs"
            exit 2
            ;;
          again) start_again ;;
        esac
        ;;
      MISSING | PREEMPTED | TERMINATED | STOPPED | SUSPENDED | FAILED) create_again "$state" ;;
    esac
    sleep "$poll"
    state=$(machine)
  done
}

parse_action "create queue setup run logs status watch stop delete" \
  "name zone project accelerator version spot! queued! nfs mount restarts poll" "$@"
[[ $action != queue ]] || queued=true
must_be_set name zone accelerator version mount
must_be_integer restarts poll
need gcloud "see https://cloud.google.com/sdk/docs/install"
where=(--zone="$zone" ${project:+--project="$project"})

case $action in
  create | queue) create ;;
  setup) setup ;;
  run)
    must_train
    start
    ;;
  logs) on_workers 0 "tail -n 200 -F bloodjax-run/log" ;;
  status) on_workers all "bloodjax/launch/worker.sh status" ;;
  watch)
    must_train
    [[ $in_bucket == true || -n $nfs ]] ||
      fail "the workdir is on the machine, which a preemption deletes: expected --workdir=gs://BUCKET/NAME, or --nfs"
    if [[ $dry_run == true ]]; then
      # One round after a preemption.
      machine
      delete
      create
      set_up_and_start
    else
      watch
    fi
    ;;
  stop) on_workers all "bloodjax/launch/worker.sh stop" ;;
  delete) delete ;;
esac
