"""launch/lib.sh: flags, errors, --dry-run, and when a run is started again."""

import shlex

import pytest


@pytest.fixture
def script(machine, launch):
    """Runs bash code after lib.sh, with flags in "$@"."""
    path = machine.folder / "script.sh"

    def run(code, *flags):
        start = f"#!/usr/bin/env bash\n# The help.\n\nset -euo pipefail\nsource {launch}/lib.sh\n"
        path.write_text(f"{start}{code}\n")
        path.chmod(0o755)
        return machine.run(str(path), *flags)

    return run


def test_parse_sets_variables_and_leaves_the_rest_as_it_is(script):
    code = 'zone=a spot=; parse "zone my-name spot!" "$@";'
    code += 'quoted "$zone" "$my_name" "$spot" "${arguments[@]}"'
    ended = script(code, "--zone=b=c", "--my-name=x y", "--spot", "--", "--zone=d", "$HOME")
    assert shlex.split(ended.stdout) == ["b=c", "x y", "true", "--zone=d", "$HOME"]


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--zoom=a", "--zoom=a"),
        ("stray", "stray"),
        ("--zone", "--zone=..."),
        ("--spot=1", "--spot=1"),
    ],
)
def test_a_wrong_flag_is_one_line(script, flag, says):
    ended = script('parse "zone spot!" "$@"', flag)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert says in ended.stderr


def test_help_is_the_comment_at_the_top(script):
    ended = script('parse "zone" "$@"', "--help")
    assert (ended.returncode, ended.stdout) == (0, "The help.\n")


def test_run_prints_what_a_shell_reads_back_and_runs_nothing_when_dry(script, machine):
    ended = script('parse "" "$@"; run touch "a b" "*" "$HOME/\\$x"', "--dry-run")
    assert shlex.split(ended.stdout) == ["touch", "a b", "*", f"{machine.folder}/$x"]
    assert not (machine.folder / "a b").exists()


def test_run_runs(script, machine):
    assert script('run touch "a b"').returncode == 0
    assert (machine.folder / "a b").exists()


@pytest.mark.parametrize("value", ["", "x", "-1", "1.5", "08"])
def test_a_number_must_be_integer(script, value):
    ended = script('parse "restarts" "$@"; must_be_integer restarts', f"--restarts={value}")
    assert (ended.returncode, "--restarts=" in ended.stderr) == (2, True)


def test_a_missing_value_is_named(script):
    ended = script("my_name=; must_be_set my_name")
    assert (ended.returncode, ended.stderr) == (
        2,
        "error: --my-name is missing; --help lists the flags\n",
    )


@pytest.mark.parametrize(
    "flags",
    [
        ["--config=c"],
        ["--workdir=/w"],
        ["--config=c", "--workdir=w"],
        ["--config=", "--workdir=/w"],
        [],
    ],
)
def test_a_training_run_needs_a_config_and_an_absolute_workdir(script, flags):
    assert script('parse "" "$@"; must_train', "--", *flags).returncode == 2


@pytest.mark.parametrize(
    ("workdir", "in_bucket"), [("/w", "false"), ("gs://b/w", "true"), ("s3://b/w", "true")]
)
def test_a_workdir_is_absolute_or_in_a_bucket(script, workdir, in_bucket):
    code = 'parse "" "$@"; must_train; echo $in_bucket'
    ended = script(code, "--", "--config=c", f"--workdir={workdir}")
    assert (ended.returncode, ended.stdout) == (0, f"{in_bucket}\n")


def test_only_done_and_a_mistake_are_final(script):
    statuses = (0, 1, 2, 75, 130, 137, 143)
    ended = script(
        f"for s in {' '.join(map(str, statuses))}; do starts_again $s && echo $s; done; true"
    )
    assert ended.stdout.split() == ["1", "75", "130", "137", "143"]


def test_a_command_that_is_not_there_is_one_line_unless_dry(script):
    ended = script('parse "" "$@"; need no-such-command "install it"')
    assert (ended.returncode, ended.stderr) == (
        2,
        "error: no-such-command is not installed: install it\n",
    )
    assert script('parse "" "$@"; need no-such-command "install it"', "--dry-run").returncode == 0


@pytest.mark.parametrize("before", ['"$@" < /dev/null', "child=$!", "[[ $owed == false ]]"])
def test_a_signal_reaches_a_command_once_whenever_it_comes(script, before):
    ended = script(
        f"""forward_signals
        forward() {{ echo forwarded; kill -TERM "$child"; }}
        before={shlex.quote(before)}
        set -o functrace
        trap 'if [[ $BASH_COMMAND == "$before" ]]; then before=; kill -TERM $$; fi' DEBUG
        run_and_wait sleep 30
        echo "$status" """
    )
    assert ended.stdout.splitlines() == ["forwarded", "143"]
