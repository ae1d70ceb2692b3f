# shellcheck shell=bash
# What every launcher shares: flags, errors, --dry-run, and the one rule of when a run is started again.
#
# A launcher's first lines are `set -euo pipefail` and `source .../lib.sh`. It keeps its flags in variables
# (dry_run, restarts, ...), reads them with `parse`, and calls what changes anything outside through `run`.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "error: bash $BASH_VERSION: bash 4.4 or newer is needed" >&2
  exit 2
fi

# What a launcher installs on machines that have nothing yet. The tests run with this JAX.
# shellcheck disable=SC2034  # the launchers read them
readonly PYTHON_VERSION=3.12 JAX_VERSION=0.10.2
# A run may be started again this often, unless --restarts says otherwise.
# shellcheck disable=SC2034
restarts=20
dry_run=false

# fail MESSAGE: ends with one line and status 2, as the user's mistake.
fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

say() { printf '%s\n' "$*" >&2; }

# need COMMAND HINT: fails unless COMMAND is installed. A dry run needs none.
need() {
  [[ $dry_run == true ]] || command -v "$1" >/dev/null || fail "$1 is not installed: $2"
}

# run COMMAND...: runs it; under --dry-run prints it, ready to be pasted, and runs nothing.
run() {
  if [[ $dry_run == true ]]; then
    quoted "$@"
  else
    "$@"
  fi
}

# quoted WORD...: prints the words as one line that a shell reads as the same words.
quoted() {
  local line
  printf -v line '%q ' "$@"
  printf '%s\n' "${line% }"
}

# parse "NAME NAME ..." ARGUMENT...: sets the variable of each --name=value (dashes become underscores), sets
# dry_run for --dry-run, and `arguments` to all that follows `--`. A name that ends with `!` takes no value.
# Names with an underscore in front leave all others to the flags.
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
      fail "$_flag is not known; --help lists the flags"
    fi
  done
}

# parse_action "ACTION ACTION ..." "NAME NAME ..." ARGUMENT...: sets `action` to the first argument and parses the rest.
parse_action() {
  action=${3:-}
  [[ $action != --help ]] || parse "" --help
  [[ $action == [a-z]* && " $1 " == *" $action "* ]] || fail "'$action' is none of the actions: $1"
  parse "$2" "${@:4}"
}

# usage: prints the comment at the top of the script that was started, less its first line.
usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; }

# must_be_set NAME...: fails for the first flag without a value.
must_be_set() {
  local _name
  for _name in "$@"; do
    [[ -n ${!_name} ]] || fail "--${_name//_/-} is missing; --help lists the flags"
  done
}

# must_be_whole NAME...: fails for the first flag that is not a whole number.
must_be_whole() {
  local _name
  for _name in "$@"; do
    [[ ${!_name} =~ ^(0|[1-9][0-9]{0,8})$ ]] ||
      fail "--${_name//_/-}=${!_name} is not a whole number (0 or more)"
  done
}

# must_train: fails unless `arguments` are those of a training run with an absolute workdir.
must_train() {
  local argument config=false workdir=false
  for argument in "${arguments[@]}"; do
    case $argument in
      --config=?*) config=true ;;
      --workdir=/?*) workdir=true ;;
      --workdir=*) fail "$argument: an absolute path is needed, of a folder that every process sees" ;;
    esac
  done
  [[ $config == true && $workdir == true ]] ||
    fail "after -- the flags of bloodjax.main are expected, --config=FILE and --workdir=DIR among them"
}

# starts_again STATUS: whether a run that ended so is to be started again. 0 is done, 2 the user's mistake;
# all else (128 + a signal with its checkpoint saved, 75 after a lost peer, a crash) goes on where it stood.
starts_again() { [[ $1 != 0 && $1 != 2 ]]; }

# forward_signals: from now on SIGTERM and SIGINT do not end the script. They set `stopped`, and reach the command
# that run_and_wait runs, or will run, by `forward`, which may be replaced.
forward_signals() {
  stopped=false child=''
  trap 'stopped=true interrupted=true; [[ -z $child ]] || forward 2>/dev/null || true' TERM INT
}

# forward: hands SIGTERM on to the command with the pid `child`.
forward() { kill -TERM "$child"; }

# run_and_wait COMMAND...: runs it, waits until it has really ended, and sets `status` to how.
# shellcheck disable=SC2034  # `status` is the caller's
run_and_wait() {
  local again
  interrupted=false status=0
  "$@" &
  child=$!
  [[ $stopped == false ]] || forward 2>/dev/null || true
  wait "$child" || status=$?
  # A signal ends `wait` before the command has ended: then there is more to wait for.
  while [[ $interrupted == true ]]; do
    interrupted=false again=0
    wait "$child" || again=$?
    ((again == 127)) || status=$again # 127: it had ended before
  done
  child=''
}
