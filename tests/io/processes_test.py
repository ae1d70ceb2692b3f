"""Tests of bloodjax/io/processes.py."""

import json
import os
import subprocess
import sys
import time

import pytest

from bloodjax.io import processes

if processes.identity(os.getpid()) is None:
    pytest.skip("only Linux tells which processes are alive", allow_module_level=True)


def test_a_process_is_alive_until_it_ends():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    known = json.loads(json.dumps(processes.identity(child.pid)))
    assert processes.is_alive(known) is True
    child.kill()
    time.sleep(0.1)
    assert processes.is_alive(known) is False  # a zombie
    child.wait()
    child.stdin.close()
    assert processes.is_alive(known) is False
    assert processes.identity(child.pid) is None


def test_another_process_with_the_same_id_is_another():
    machine, number, started = processes.identity(os.getpid())
    assert processes.is_alive([machine, number, started]) is True
    assert processes.is_alive([machine, number, started + "1"]) is False


@pytest.mark.parametrize("strange", [None, "", [], ["a"], [1, "x", 2], {"a": 1}, 7])
def test_what_is_no_identity_is_not_known(strange):
    assert processes.is_alive(strange) is None


def test_a_process_of_another_machine_is_not_known():
    _, *rest = processes.identity(os.getpid())
    assert processes.is_alive(["another machine", *rest]) is None
