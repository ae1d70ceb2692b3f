#!/usr/bin/env bash
# Keeps one run in the background of the machine it is called on: tpu_vm.sh calls it on every worker.
#
#   launch/worker.sh start -- COMMAND...    ends the run of before, if any, and starts this one
#   launch/worker.sh status                 prints "bloodjax-status " and: absent, running, lost, or how it ended
#   launch/worker.sh stop                   SIGTERM: the run saves a checkpoint and ends
#   --dry-run                               start and stop: prints what would be run
#
# "absent" is a run never started here; "lost" one that was and is no more, as after a reboot. --state=DIR
# (~/bloodjax-run) holds log, pid and status.

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/lib.sh"

# pid: prints the pid of the run, if it is alive and still ours.
pid() {
  local number
  number=$(cat "$state/pid" 2>/dev/null) || return 1
  [[ $(ps -o args= -p "$number" 2>/dev/null) == *restart.sh* ]] && echo "$number"
}

start() {
  ((${#arguments[@]})) || fail "after -- a command is expected"
  stop
  local supervised=("$here/restart.sh" --restarts=0 --status-file="$state/status" -- "${arguments[@]}")
  if [[ $dry_run == true ]]; then
    run "${supervised[@]}"
    return
  fi
  mkdir -p "$state"
  rm -f "$state/status"
  # A session of its own outlives the connection that it is started over.
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
  # A run saves within 30 s; one that does not end is ended.
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
