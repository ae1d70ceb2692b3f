#!/usr/bin/env bash
# Runs a command and restarts it until it succeeds. For one machine, and inside the other launchers.
#
#   launch/restart.sh [--restarts=20] [--delay=10] [--status-file=FILE] [--dry-run] -- COMMAND...
#
# There is no restart after status 0 (success) or 2 (a user error), nor after SIGTERM or SIGINT, which are forwarded
# to the command. The exit status is the command's last one; --status-file receives it too, in one atomic write.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

delay=10 status_file=
parse "restarts delay status-file" "$@"
must_be_integer restarts delay
((${#arguments[@]})) || fail "expected a command after --"
if [[ $dry_run == true ]]; then
  run "${arguments[@]}"
  exit
fi

left=$restarts
forward_signals
while true; do
  run_and_wait "${arguments[@]}"
  if [[ $stopped == true ]] || ! starts_again "$status"; then
    break
  elif ((left == 0)); then
    say "exited with status $status; not restarted (--restarts=$restarts)"
    break
  fi
  left=$((left - 1))
  say "exited with status $status; restarting in $delay s ($left restarts left after that)"
  last=$status
  run_and_wait sleep "$delay" # a signal ends the delay
  status=$last
  [[ $stopped == false ]] || break
done

if [[ -n $status_file ]]; then
  printf '%s\n' "$status" >"$status_file.new"
  mv "$status_file.new" "$status_file"
fi
exit "$status"
