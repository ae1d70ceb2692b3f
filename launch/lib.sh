# shellcheck shell=bash
# Shared by all launchers: flags, errors, --dry-run, and the rule that decides when a run is restarted.
#
# A launcher starts with `set -euo pipefail` and `source .../lib.sh`. It keeps its flags in variables
# (dry_run, restarts, ...), reads them with `parse`, and uses `run` for each command that changes something.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "error: bash $BASH_VERSION: bash 4.4 or newer is needed" >&2
  exit 2
fi

# Versions that a launcher installs on new machines. The tests run with this JAX.
# shellcheck disable=SC2034  # the launchers read them
readonly PYTHON_VERSION=3.12 JAX_VERSION=0.10.2
# Default of --restarts: how often a run is restarted.
# shellcheck disable=SC2034
restarts=20
dry_run=false

# fail MESSAGE: prints one line and exits with status 2, a user error.
fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

say() { printf '%s\n' "$*" >&2; }

# need COMMAND HINT: fails unless COMMAND is installed. A dry run needs none.
need() {
  [[ $dry_run == true ]] || command -v "$1" >/dev/null || fail "$1 is not installed: $2"
}

# run COMMAND...: runs the command; with --dry-run prints it, quoted for a shell, and does not run it.
run() {
  if [[ $dry_run == true ]]; then
    quoted "$@"
  else
    "$@"
  fi
}

# quoted WORD...: prints the words in one line, quoted for a shell.
quoted() {
  local line
  printf -v line '%q ' "$@"
  printf '%s\n' "${line% }"
}

# slurm_log PATTERN: sets `log` to a file next to `workdir` if it is empty, and makes its folder. sbatch replaces
# patterns such as %j in the name, where %% is the sign, and makes no folder: without it the job fails silently.
slurm_log() {
  # shellcheck disable=SC2154  # `workdir` is the caller's
  local beside=${workdir%/} folder
  log=${log:-${beside//'%'/%%}.slurm-$1.log}
  folder=$(dirname "$log")
  run mkdir -p "${folder//'%%'/%}"
}

# parse "NAME NAME ..." ARGUMENT...: sets a variable for each --name=value (dashes become underscores), dry_run for
# --dry-run, and `arguments` to everything after `--`. A NAME that ends with `!` is a flag without a value.
# Its own variables start with an underscore, so that they do not collide with flags.
# shellcheck disable=SC2034  # `arguments` is the caller's
parse() {
  local _known=" $1 dry-run! " _flag _name
  shift
  arguments=()
  while (($#)); do
    _flag=$1
    shift
    if [[ $_flag == -- ]]; then
      arguments=("$@")
      return
    fi
    _name=${_flag%%=*}
    _name=${_name#--}
    if [[ $_flag == --help ]]; then
      usage
      exit 0
    elif [[ $_flag == --*=* && $_known == *" $_name "* ]]; then
      printf -v "${_name//-/_}" '%s' "${_flag#*=}"
    elif [[ $_flag == --* && $_flag != *=* && $_known == *" $_name! "* ]]; then
      printf -v "${_name//-/_}" true
    elif [[ $_flag == --* && $_flag != *=* && $_known == *" $_name "* ]]; then
      fail "$_flag needs a value: $_flag=..."
    else
      fail "unknown flag $_flag; --help lists the flags"
    fi
  done
}

# parse_action "ACTION ACTION ..." "NAME NAME ..." ARGUMENT...: sets `action` to the first argument and parses the rest.
parse_action() {
  action=${3:-}
  [[ $action != --help ]] || parse "" --help
  [[ $action == [a-z]* && " $1 " == *" $action "* ]] || fail "unknown action '$action', expected one of: $1"
  parse "$2" "${@:4}"
}

# usage: prints the comment at the top of the started script, without its first line.
usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; }

# must_be_set NAME...: fails if one of the flags has no value.
must_be_set() {
  local _name
  for _name in "$@"; do
    [[ -n ${!_name} ]] || fail "--${_name//_/-} is missing; --help lists the flags"
  done
}

# must_be_integer NAME...: fails if one of the flags is not a non-negative integer.
must_be_integer() {
  local _name
  for _name in "$@"; do
    [[ ${!_name} =~ ^(0|[1-9][0-9]{0,8})$ ]] ||
      fail "--${_name//_/-}=${!_name} is not an integer of at least 0"
  done
}

# must_train: fails unless `arguments` contain --config, and a --workdir that outlives the machines: in a bucket, or an
# absolute path. Sets `in_bucket` to true or false.
# shellcheck disable=SC2034  # the launchers read it
must_train() {
  local argument config=false workdir=false
  in_bucket=false
  for argument in "${arguments[@]}"; do
    case $argument in
      --config=?*) config=true ;;
      --workdir=gs://?* | --workdir=s3://?*) workdir=true in_bucket=true ;;
      --workdir=/?*) workdir=true in_bucket=false ;;
      --workdir=*) fail "$argument: expected gs://BUCKET/NAME, s3://BUCKET/NAME, or an absolute path, of a folder that all processes share" ;;
    esac
  done
  [[ $config == true && $workdir == true ]] ||
    fail "expected the flags of bloodjax.main after --, including --config=FILE and --workdir=DIR"
}

# must_sweep: fails unless `arguments` are those of a sweep with an absolute --workdir, which it sets `workdir` to. Adds
# a storage that several machines can share, unless there is one.
must_sweep() {
  local argument missing="config trials workdir " storage=''
  for argument in "${arguments[@]}"; do
    case $argument in
      --config=?*) missing=${missing/config /} ;;
      --trials=?*) missing=${missing/trials /} ;;
      --workdir=/?*) missing=${missing/workdir /} workdir=${argument#--workdir=} ;;
      --workdir=*) fail "$argument: expected an absolute path, of a folder that all workers share" ;;
      --storage=?*) storage=$argument ;;
    esac
  done
  [[ -z $missing ]] ||
    fail "expected the flags of bloodjax.sweep after --, including --config=FILE, --trials=N and --workdir=DIR"
  [[ -n $storage ]] || arguments+=("--storage=journal:///$workdir/sweep.log")
}

# starts_again STATUS: whether a run with this exit status is restarted. 0 is success and 2 a user error. After
# any other status (128 + signal, 75 for a lost peer, a crash) a new start resumes from the last checkpoint.
starts_again() { [[ $1 != 0 && $1 != 2 ]]; }

# forward_signals: from now on SIGTERM and SIGINT do not end the script. They set `stopped` and call `forward`, which
# a launcher may redefine, for the command that run_and_wait runs or will run.
forward_signals() {
  stopped=false child='' owed=false
  trap 'stopped=true interrupted=true; if [[ -n $child ]]; then forward 2>/dev/null || true; else owed=true; fi' TERM INT
}

# forward: sends SIGTERM to the command with the pid `child`.
forward() { kill -TERM "$child"; }

# run_and_wait COMMAND...: runs the command, waits for its end, and sets `status` to its exit status.
# shellcheck disable=SC2034  # `status` is the caller's
run_and_wait() {
  local again
  interrupted=false status=0 owed=$stopped
  # From a terminal, Ctrl-C signals every process of the script's group. In a group of its own, the command gets the
  # signal that is forwarded and no second one, which would have it end without saving.
  [[ ! -t 0 ]] || set -m
  "$@" </dev/null &
  child=$!
  set +m
  # A signal that came before `child` was set. From then on the trap itself forwards, and once.
  [[ $owed == false ]] || forward 2>/dev/null || true
  wait "$child" || status=$?
  # A signal ends `wait` before the command has ended: wait again.
  while [[ $interrupted == true ]]; do
    interrupted=false again=0
    wait "$child" || again=$?
    ((again == 127)) || status=$again # 127: it had already ended
  done
  child=''
}
