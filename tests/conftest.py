"""Every test runs with eight CPU devices, strict dtypes and ranks, and checked array shapes."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ["XLA_FLAGS"] = " ".join(
    (
        "--xla_force_host_platform_device_count=8",
        # On two busy cores eight devices may keep each other waiting for longer than XLA allows.
        "--xla_cpu_collective_call_terminate_timeout_seconds=300",
        # Most of the time is compilation, and LLVM's first level takes a fifth less of it. Users'
        # programs have the third: XLA_FLAGS=--xla_backend_optimization_level=3 tests them.
        "--xla_backend_optimization_level=1",
        os.environ.get("XLA_FLAGS", ""),  # of two values of a flag, XLA takes the last one
    )
).strip()
# Each worker of pytest-xdist has a core. Beside other work, threads of NumPy's and SciPy's linear
# algebra wait for each other in loops: a decomposition of 112x768 takes 0.02 s with one thread, and
# seconds with two.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
# A limit, however high, has JAX lock the folder for each file that it reads or writes. It is set
# ahead of JAX's import because a cache that was opened without a limit stays without one, and
# its files without the times of use that processes with a limit expect.
os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(2**34)

import functools
import gc
import importlib.util
import logging
import pathlib
import sys

import filelock
import jax
import pytest
from jaxtyping import install_import_hook

from . import emulators

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Shapes and dtypes in annotations are checked for the tests' whole run.
install_import_hook("bloodjax", "beartype.beartype")

# JAX makes many objects that live as long as the process. With Python's thresholds, looking at them
# for cycles again and again takes a tenth of the tests' time.
gc.set_threshold(50_000, 20, 20)

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def cells_dir():
    """The folder of real cells beside the checkout; tests that need it skip without it."""
    if not (SHARED / "pbc96_train.zip").exists():
        pytest.skip(f"the real cells are not at hand (expected in {SHARED})")
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def _compiled_once(tmp_path_factory):
    """What one test compiled, the others take: those of other workers and processes too.

    With JAX_COMPILATION_CACHE_DIR in the environment, those of later pytest commands as well.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder = os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
    jax.config.update("jax_compilation_cache_dir", folder)


@pytest.fixture(autouse=True)
def _same_logging():
    """Commands, and functions such as `bloodjax.train`, configure the logger "bloodjax"."""
    logger = logging.getLogger("bloodjax")
    before = logger.handlers, logger.propagate, logger.level
    yield
    logger.handlers, logger.propagate = before[:2]
    logger.setLevel(before[2])


def tiny_config(**changes):
    """A run of three epochs of seven steps each that takes seconds; `changes` by dotted key."""
    from bloodjax import config as config_lib

    config = config_lib.defaults()
    values = {
        "batch_size": 16,
        "data.train": "synthetic:160",
        "data.image_size": 32,
        "model.name": "simple_cnn",
        "model.weights": "",
        "model.head.hidden": (16,),
        "phases.head.epochs": 1,
        "phases.finetune.epochs": 2,
        "evaluation.bootstrap": 20,
        "grace_seconds": 600.0,  # on busy cores a step may take long
    }
    config.update_from_flattened_dict(values | changes)
    return config_lib.validate(config)


@pytest.fixture(scope="session")
def make_config():
    return tiny_config


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The workdir of a tiny run that has ended. Tests must not change it."""
    from bloodjax import run

    # The processes of pytest-xdist have folders of their own in one that they share.
    shared = "PYTEST_XDIST_WORKER" in os.environ
    base = tmp_path_factory.getbasetemp()
    workdir = (base.parent if shared else base) / "trained" / "run"
    workdir.parent.mkdir(exist_ok=True)
    with filelock.FileLock(f"{workdir}.lock"):
        if not (workdir / "report" / "index.html").exists():
            run.train(tiny_config(), workdir)
    return workdir


@pytest.fixture
def command():
    """What starts `python -m bloodjax.<name>` as a process of its own, for subprocess."""

    def arguments(name, *flags):
        return {
            "args": [sys.executable, "-m", f"bloodjax.{name}", *flags],
            "cwd": pathlib.Path(__file__).parents[1],
            "text": True,
        }

    return arguments


@pytest.fixture(scope="session")
def s3_endpoint():
    """Address of an emulator of S3; tests that need it skip without the extra [emulators]."""
    with emulators.s3_server() as address:
        yield address


@pytest.fixture(scope="session")
def gcs_endpoint():
    """Address of an emulator of GCS; tests that need it skip without the extra [emulators]."""
    with emulators.gcs_server() as address:
        yield address


@pytest.fixture
def make_bucket(request, monkeypatch, tmp_path):
    """Makes an empty bucket of a scheme, "s3" or "gs"; the environment and the cache are its."""

    def make(scheme):
        kind = {"s3": "s3", "gs": "gcs"}[scheme]
        endpoint = request.getfixturevalue(f"{kind}_endpoint")
        for name, value in emulators.environment(tmp_path / "cache", **{kind: endpoint}).items():
            monkeypatch.setenv(name, value)
        return emulators.make_bucket(scheme, endpoint)

    return make


@pytest.fixture(params=["s3", "gs"])
def bucket(request, make_bucket):
    """An empty bucket; the test runs once on S3 and once on GCS."""
    return make_bucket(request.param)


@functools.cache
def _torchvision():
    torch = pytest.importorskip("torch", reason="needs the extra [parity]")
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("needs the extra [parity]")
    # PyTorch's CPU build lacks torchvision's compiled operators. The networks need none of them;
    # the import needs their names.
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        if not torch._C._dispatch_has_kernel(f"torchvision::{name}"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

    return torchvision, library  # the library's definitions live as long as it does


@pytest.fixture(scope="session")
def torchvision():
    return _torchvision()[0]


@pytest.fixture(scope="session")
def timm():
    _torchvision()
    return pytest.importorskip("timm", reason="needs the extra [parity]")


@pytest.fixture
def keras():
    """Keras, whose automatic names of layers start anew."""
    keras = pytest.importorskip("keras", reason="needs the extra [parity]")
    keras.utils.clear_session()
    return keras


def pytest_configure(config):
    """Compiles the smoke tests without LLVM's optimisations, which halves their time."""
    if config.option.markexpr == "smoke":  # before the first use of JAX's devices, which reads it
        os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
        os.environ["XLA_FLAGS"] += " --xla_llvm_disable_expensive_passes=true"


def pytest_ignore_collect(collection_path, config):
    """Skips files without a smoke test under `-m smoke`: importing all of them takes longest."""
    if config.option.markexpr == "smoke" and collection_path.name.endswith("_test.py"):
        return True if "mark.smoke" not in collection_path.read_text("utf-8") else None
    return None


def pytest_addoption(parser):
    parser.addoption(
        "--parity-table",
        action="store_true",
        help="print the worst error of every network against each reference, as Markdown",
    )
    parser.addoption(
        "--write-speed-figures",
        action="store_true",
        help="store what tests/speed_test.py counts for this jax, in place of comparing it",
    )


def pytest_terminal_summary(terminalreporter, config):
    if not config.getoption("--parity-table"):
        return
    worst = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for kind, found in getattr(report, "user_properties", ()):
                if kind == "parity":
                    name, reference, _, error = found
                    row = worst.setdefault(name, {})
                    row[reference] = max(error, row.get(reference, 0.0))
    references = sorted({reference for row in worst.values() for reference in row})
    terminalreporter.write_line(f"\n| network | {' | '.join(references)} |")
    terminalreporter.write_line("|---" * (1 + len(references)) + "|")
    for name, row in sorted(worst.items()):
        cells = [f"{row[r]:.0e}" if r in row else "" for r in references]
        terminalreporter.write_line(f"| {name} | {' | '.join(cells)} |")
