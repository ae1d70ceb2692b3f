#!/usr/bin/env bash
# Starts a command again until it is done: for one machine, and inside the other launchers.
#
#   launch/restart.sh [--restarts=20] [--delay=10] [--status-file=FILE] [--dry-run] -- COMMAND...
#
# A command that ends with 0 (done) or 2 (the user's mistake) is not started again, nor one after SIGTERM or SIGINT,
# which are handed on. Ends with the command's last status; --status-file gets it too, whole or not at all.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

delay=10 status_file=
parse "restarts delay status-file" "$@"
must_be_whole restarts delay
((${#arguments[@]})) || fail "after -- a command is expected"
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
    say "ended with status $status; not started again (--restarts=$restarts)"
    break
  fi
  left=$((left - 1))
  say "ended with status $status; starting again in $delay s ($left more after that)"
  last=$status
  run_and_wait sleep "$delay" # a signal ends it at once
  status=$last
  [[ $stopped == false ]] || break
done

if [[ -n $status_file ]]; then
  printf '%s\n' "$status" >"$status_file.new"
  mv "$status_file.new" "$status_file"
fi
exit "$status"
