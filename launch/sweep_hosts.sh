#!/usr/bin/env bash
# Runs a worker of a sweep on each of several hosts, through ssh. They share the sweep's folder.
#
#   launch/sweep_hosts.sh start --hosts=a,b,c [flags] -- --config=FILE --trials=N --workdir=DIR ...
#   launch/sweep_hosts.sh status --hosts=a,b,c     absent, running, lost, or the exit status of each
#   launch/sweep_hosts.sh stop --hosts=a,b,c       each worker saves its trial and ends
#
#   --python=.venv/bin/python          a Python with bloodjax installed, relative to the checkout
#   --checkout=FOLDER                  of each host; default: this one
#   --state=DIR                        log, pid and status of a worker, on its host; default: /tmp/bloodjax-sweep
#   --tpu=2,2,1                        on a TPU pod: the chips of a host, which its worker uses without the other hosts
#   --dry-run                          prints the commands and does not run them
#
# Without --storage the trials are stored in the journal WORKDIR/sweep.log, which several machines can share. `start` starts
# workers that have ended again, and leaves running ones alone. A host that fails, for example because it cannot be reached,
# is named at the end, and the others go on; the exit status is then 1.

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/lib.sh"

hosts='' python=.venv/bin/python checkout=${here%/*} state=/tmp/bloodjax-sweep tpu=''

# worker HOST ACTION [WORD...]: runs launch/worker.sh on a host.
worker() {
  local host=$1
  shift
  # The words are quoted for the shell of the host.
  run ssh -o BatchMode=yes "$host" "cd $(quoted "$checkout") && $(quoted launch/worker.sh "$1" "--state=$state" "${@:2}")"
}

start() {
  must_sweep
  local host found='' alone=()
  # Otherwise libtpu would wait for the pod's other hosts.
  [[ -z $tpu ]] || alone=(env "TPU_CHIPS_PER_PROCESS_BOUNDS=$tpu" "TPU_PROCESS_BOUNDS=1,1,1")
  for host in "${each[@]}"; do
    if [[ $dry_run == false ]] && ! found=$(worker "$host" status); then
      failed+=("$host")
    elif [[ $found == *running ]]; then
      say "$host: is running"
    elif worker "$host" start -- "${alone[@]}" "$python" -m bloodjax.sweep "${arguments[@]}"; then
      say "$host: started"
    else
      failed+=("$host")
    fi
  done
}

for_each() {
  local host answer
  for host in "${each[@]}"; do
    if answer=$(worker "$host" "$1"); then
      echo "$host: ${answer:-stopped}"
    else
      failed+=("$host")
    fi
  done
}

parse_action "start status stop" "hosts python checkout state tpu" "$@"
must_be_set hosts python checkout state
IFS=, read -ra each <<<"$hosts"
failed=()
need ssh "launch/sweep_hosts.sh starts the workers through it"
case $action in
  start) start ;;
  *) for_each "$action" ;;
esac
if ((${#failed[@]})); then
  say "error: $action failed on ${#failed[@]} of ${#each[@]} hosts: ${failed[*]}"
  exit 1
fi
