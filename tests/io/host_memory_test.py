import os

import pytest

from bloodjax.io.host_memory import host_memory

PHYSICAL = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("own", "limits", "expected"),
    [
        ("0::/\n", {"memory.max": "1048576\n"}, 1048576),
        ("0::/\n", {"memory.max": "max\n"}, PHYSICAL),
        ("0::/\n", {"memory.max": str(PHYSICAL * 2)}, PHYSICAL),
        ("0::/jobs/7\n", {"jobs/7/memory.max": "max", "jobs/memory.max": "4096"}, 4096),
        ("0::/jobs/7\n", {"jobs/7/memory.max": "1024", "jobs/memory.max": "4096"}, 1024),
        ("0::/docker/of/the/host\n", {"memory.max": "2048"}, 2048),
        ("0::/\n", {}, PHYSICAL),
        ("", {}, PHYSICAL),
        # Version 1: a hierarchy for each controller, and no limit is a very large number.
        (
            "5:cpu,cpuacct:/a\n3:memory:/a\n0::/\n",
            {"memory/a/memory.limit_in_bytes": "8192", "memory/memory.limit_in_bytes": str(2**63)},
            8192,
        ),
        ("5:cpu,cpuacct:/a\n", {"a/memory.max": "1"}, PHYSICAL),
        # A path above the root is outside of what the process sees.
        ("0::/../other\n", {"memory.max": "512"}, 512),
    ],
)
def test_the_lowest_limit_of_the_groups_counts(tmp_path, own, limits, expected):
    write(tmp_path / "own", own)
    for name, text in limits.items():
        write(tmp_path / "cgroups" / name, text)
    assert host_memory(tmp_path / "own", tmp_path / "cgroups") == expected


def test_without_control_groups_it_is_the_hosts(tmp_path):
    assert host_memory(tmp_path / "missing", tmp_path) == PHYSICAL
    assert 0 < host_memory() <= PHYSICAL
