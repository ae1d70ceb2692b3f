#!/usr/bin/env bash
# Manages one run in the background of this machine. tpu_vm.sh calls it on every worker.
#
#   launch/worker.sh start -- COMMAND...    stops the previous run, if any, and starts this one
#   launch/worker.sh status                 prints "bloodjax-status " and: absent, running, lost, or the exit status
#   launch/worker.sh stop                   sends SIGTERM: the run saves a checkpoint and exits
#   --dry-run                               start and stop: prints the commands and does not run them
#
# "absent": no run was started here. "lost": a run was started and its process is gone, as after a reboot.
# --state=DIR (~/bloodjax-run) contains log, pid and status.

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/lib.sh"

# pid: prints the pid of the run if it is alive and is not another program's by now.
pid() {
  local number
  number=$(cat "$state/pid" 2>/dev/null) || return 1
  [[ $(ps -o args= -p "$number" 2>/dev/null) == *restart.sh* ]] && echo "$number"
}

start() {
  ((${#arguments[@]})) || fail "expected a command after --"
  stop
  local supervised=("$here/restart.sh" --restarts=0 --status-file="$state/status" -- "${arguments[@]}")
  if [[ $dry_run == true ]]; then
    run "${supervised[@]}"
    return
  fi
  mkdir -p "$state"
  rm -f "$state/status"
  # In its own session the run survives the end of the ssh connection.
  nohup setsid "${supervised[@]}" >>"$state/log" 2>&1 </dev/null &
  echo $! >"$state/pid"
}

show() {
  local found=absent
  if [[ -f $state/status ]]; then
    found=$(cat "$state/status")
  elif pid >/dev/null; then
    found=running
  elif [[ -f $state/pid ]]; then
    found=lost
  fi
  echo "bloodjax-status $found"
}

stop() {
  local number
  number=$(pid) || return 0
  run kill -TERM "$number"
  [[ $dry_run == false ]] || return 0
  # A run saves and exits within 30 s. Kill one that has not ended after 60 s.
  for _ in {1..60}; do
    pid >/dev/null || return 0
    sleep 1
  done
  kill -KILL -- "-$number" || true
}

state=$HOME/bloodjax-run
parse_action "start status stop" "state" "$@"
case $action in
  start) start ;;
  status) show ;;
  stop) stop ;;
esac
