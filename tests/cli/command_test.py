"""Runs functions as commands in this process; the commands' own tests start real processes."""

import errno
import logging
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time

import pytest
from absl.testing import flagsaver

from bloodjax.cli import command
from bloodjax.errors import Stopped, UserError

# The commands' flags have the same names, so that no process can import two of them.
_NAME = command.flags.DEFINE_string("cli_test_name", None, "SPEC: A name.")
command.flags.DEFINE_multi_string("cli_test_folders", None, "DIR: Folders.")
_COUNT = command.flags.DEFINE_integer("cli_test_count", 1, "N: A count.")
command.flags.DEFINE_enum("cli_test_kind", "a", ["a", "b"], "A kind.")
command.flags.DEFINE_bool("cli_test_also", False, "Do this first.")
command.flags.DEFINE_string("cli_test_old", None, "Former name of --cli_test_name.")


@pytest.fixture(autouse=True)
def _leaves_no_trace():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with flagsaver.flagsaver():
        yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a main function as a command; returns the exit status and what it printed."""

    def run(main, *arguments, **options):
        monkeypatch.setattr(sys, "argv", ["program", *arguments])
        with pytest.raises(SystemExit) as ended:
            command.run(main, **{"required": ("cli_test_name",)} | options)
        printed = capsys.readouterr()
        return ended.value.code, printed.err or printed.out

    return run


def raises(error):
    def main(_):
        raise error

    return main


def test_main_gets_the_overrides_and_reads_the_flags(run):
    seen = []
    status, printed = run(
        lambda overrides: seen.append((overrides, _NAME.value, _COUNT.value)),
        *("--config.a.b=1=2", "--cli_test_name=x", "--config.c", "3", "--cli_test_count", "7"),
        takes_config=True,
    )
    assert seen == [(["a.b=1=2", "c=3"], "x", 7)]
    assert status in (None, 0)
    assert printed == ""


_THREADS = """
from bloodjax.cli import command

def main(_):
    import numpy, threadpoolctl
    print({lib["num_threads"] for lib in threadpoolctl.threadpool_info()})

command.run(main, required=())
"""


@pytest.mark.parametrize(
    ("given", "threads"), [({}, 1), ({"OPENBLAS_NUM_THREADS": "2"}, min(2, os.cpu_count()))]
)
def test_linear_algebra_has_one_thread_unless_the_environment_says_how_many(given, threads):
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")} | given
    arguments = [sys.executable, "-c", _THREADS]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == f"{{{threads}}}"


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError("a.npz: two\nlines"), 2, "error: a.npz: two lines\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "a.json"),
            *(2, "error: a.json: No space left on device; what was saved before is intact\n"),
        ),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", "a" * 300),
            *(2, f"error: {'a' * 300}: File name too long, expected another path\n"),
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "out.csv"),
            *(2, "error: out.csv: Permission denied, expected leave to read or write it\n"),
        ),
        (Stopped("stopped at step 3", signal.SIGTERM), 143, "stopped at step 3\n"),
        (Stopped("stopped at step 3", signal.SIGINT), 130, "stopped at step 3\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
    ],
)
def test_an_ending_is_one_line_and_a_status(run, error, status, message):
    assert run(raises(error), "--cli_test_name=x") == (status, message)


class Finalized:
    """Waits for a signal in `__del__`, where Python ignores exceptions."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_that_python_ignores_is_raised_again(run):
    def main(_):
        Finalized()
        time.sleep(60)

    # A shell starts what runs in the background without a handler.
    outer = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert run(main, "--cli_test_name=x") == (130, "stopped\n")
    finally:
        signal.signal(signal.SIGINT, outer)


_INTERRUPTED = """
import signal, sys
from bloodjax.cli import command

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy._core._multiarray_umath":
            signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Finder())
command.run(lambda _: print("began"), required=())
"""


def test_an_interrupt_in_the_import_of_an_extension_ends_with_a_line():
    ended = subprocess.run([sys.executable, "-c", _INTERRUPTED], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "stopped\n")


def test_a_stop_reaches_the_process_that_waits():
    stopped = pickle.loads(pickle.dumps(Stopped("stopped at step 3", signal.SIGTERM)))
    assert (str(stopped), stopped.signal) == ("stopped at step 3", signal.SIGTERM)


def test_a_bug_keeps_its_traceback(run, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program", "--cli_test_name=x"])
    with pytest.raises(ZeroDivisionError):
        command.run(raises(ZeroDivisionError()), required=())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--cli_test_name is missing"),
        (["--cli_test_name="], "--cli_test_name is missing"),
        (["--cli_test_name=x", "--cli_test_nome=y"], "cli_test_nome"),
        (["--cli_test_name=x", "--cli_test_count=y"], "cli_test_count"),
        (["--cli_test_name=x", "y"], "unexpected argument 'y'"),
        (["--cli_test_name=x", "--config.seed=1"], "config.seed"),
        (["--cli_tset_name=x"], "unknown flag --cli_tset_name: did you mean --cli_test_name?"),
        (["--cli_tset_name.a=x"], "did you mean --cli_test_name.a?"),
        (
            ["--cli_test_name=x", "--config.a.cli_test_kind=b"],
            "takes --cli_test_kind in place of the config's key",
        ),
        (["--zzz=x"], "expected one of --cli_test_name, --cli_test_folders, --cli_test_count"),
    ],
)
def test_a_wrong_flag_ends_before_main(run, arguments, message):
    called = []
    status, printed = run(lambda _: called.append(1), *arguments)
    assert (status, called) == (2, [])
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    assert message in printed


def paths(run, *values):
    """The exit status and what was printed; and the paths in a flag that is repeated."""
    seen = []
    flags = [f"--cli_test_folders={value}" for value in values]
    ended = run(
        lambda _: seen.extend(command.local_paths("cli_test_folders")), "--cli_test_name=x", *flags
    )
    return ended, seen


def test_local_paths_are_repeated(run):
    home = pathlib.Path.home()
    assert paths(run, "a", "~", "~no_such_user/x")[1] == [
        pathlib.Path("a"),
        home,
        pathlib.Path("~no_such_user/x"),
    ]


def test_a_comma_is_part_of_a_name(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "a,b", "lr=0.1,wd=0"):
        (tmp_path / name).mkdir()
    names = ["lr=0.1,wd=0", "a,b", "b", "a", "c,d", "a,c", "a,"]
    assert paths(run, *names)[1] == [pathlib.Path(name) for name in names]


def test_paths_separated_by_commas_are_explained(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        (tmp_path / name).mkdir()
    assert paths(run, "a,b")[0] == (
        2,
        "error: --cli_test_folders=a,b: no such folder; a comma is part of a name, expected "
        "--cli_test_folders=a --cli_test_folders=b\n",
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "ftp://b",
            "error: --cli_test_folders=ftp://b: ftp:// is not supported, expected a local path, "
            "gs://BUCKET/NAME or s3://BUCKET/NAME\n",
        ),
        ("", "error: --cli_test_folders is missing; --help says what it is\n"),
    ],
)
def test_local_paths_are_checked(run, value, message):
    assert paths(run, value)[0] == (2, message)


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_is_a_screen_with_the_own_flags_and_an_example(run, flag):
    called = []
    status, printed = run(
        lambda _: called.append(1),
        *("--cli_test_name", "x", flag),
        name="test",
        example="--cli_test_name=a.npz",
    )
    assert (status, called) == (0, [])
    assert printed == (
        "usage: bloodjax test --cli_test_name=SPEC [--flag=value ...]\n\n"
        f"{__doc__}\n\n"
        "  --cli_test_name=SPEC    A name.\n"
        "  --cli_test_folders=DIR  Folders.\n"
        "  --cli_test_count=N      A count (default 1).\n"
        "  --cli_test_kind=a|b     A kind (default a).\n"
        "  --cli_test_also         Do this first.\n\n"
        "SPEC: FILE.npz, a table (.csv), a .zip or folder of <class>/<image>, tfds:NAME,\n"
        "hf-dataset:NAME or synthetic[:N]; files and folders also in a bucket (gs://, s3://).\n\n"
        "Example:\n  bloodjax test --cli_test_name=a.npz\n"
    )


def test_help_names_config_keys(run):
    printed = run(lambda _: None, "--help", takes_config=True)[1]
    assert "\n  --config.KEY=VALUE " in printed


def test_other_libraries_are_silent_and_our_warnings_are_not(run):
    def main(_):
        logging.getLogger("another").error("noise")
        logging.getLogger("bloodjax.data").warning("skipped")

    assert run(main, "--cli_test_name=x") == (0, "warning: skipped\n")
