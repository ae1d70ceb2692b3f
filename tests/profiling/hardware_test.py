import types

import jax
import pytest

from bloodjax.profiling import hardware

TERA = 1e12


@pytest.mark.parametrize(
    ("kind", "dtype", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.5),
        ("NVIDIA H100 PCIe", "bfloat16", 756.5),
        ("NVIDIA H200", "float32", 494.5),
        ("NVIDIA H200 NVL", "bfloat16", 835.5),
        ("NVIDIA A100-SXM4-40GB", "bfloat16", 312),
        ("NVIDIA L4", "bfloat16", 121),
        ("Tesla V100-SXM2-16GB", "float32", 15.7),
        ("Tesla V100-PCIE-16GB", "float32", 14),
        ("Tesla T4", "float32", 8.1),
        ("TPU v3", "bfloat16", 61.5),
        ("TPU v4", "bfloat16", 275),
        ("TPU v5 lite", "bfloat16", 197),
        ("TPU v5", "bfloat16", 459),
        ("TPU v6 lite", "bfloat16", 918),
    ],
)
def test_published_peaks(kind, dtype, tera):
    assert hardware.published(kind, dtype) == tera * TERA


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("NVIDIA L40S", "bfloat16"), ("NVIDIA GH200", "bfloat16"), ("Tesla T4", "bfloat16")],
)
def test_a_peak_that_is_not_known_is_none(kind, dtype):
    assert hardware.published(kind, dtype) is None


def _devices(monkeypatch, kind, memory):
    device = types.SimpleNamespace(
        device_kind=kind, platform="gpu", memory_stats=lambda: {"peak_bytes_in_use": memory}
    )
    monkeypatch.setattr(jax, "local_devices", lambda: [device] * 2)


def test_utilisation_is_of_all_devices(monkeypatch):
    _devices(monkeypatch, "NVIDIA L4", 0)
    peak = hardware.peak("bfloat16")
    assert peak == hardware.Peak(242 * TERA, "published: 2 x NVIDIA L4, bfloat16, dense")
    assert hardware.utilisation(24.2 * TERA, peak) == pytest.approx(0.1)


def test_an_unknown_device_has_a_reason_and_no_utilisation(monkeypatch):
    _devices(monkeypatch, "Abacus", 0)
    peak = hardware.peak("float32")
    assert peak.flops is None
    assert "'Abacus' in float32" in peak.origin
    assert hardware.utilisation(1.0, peak) is None


def test_a_cpus_peak_is_measured(monkeypatch):
    monkeypatch.setattr(hardware, "_MATMUL", 256)
    peak = hardware.peak("float32")
    assert 1e8 < peak.flops < 1e15
    assert "256 x 256 on this CPU" in peak.origin


def test_memory_is_the_devices_where_it_says_so_and_the_hosts_elsewhere(monkeypatch):
    used, of = hardware.peak_memory()
    assert used > 1e7
    assert of == "process, on the host"
    _devices(monkeypatch, "NVIDIA L4", 12)
    assert hardware.peak_memory() == (12, "fullest device")


def test_there_is_a_thread():
    assert hardware.threads() >= 1
