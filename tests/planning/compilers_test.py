import importlib.machinery
import importlib.metadata
import os

import pytest

from bloodjax.errors import UserError
from bloodjax.planning import compilers, machines

TPU, GPU = machines.machine("v5e-8"), machines.machine("h200x2")


@pytest.fixture
def wheels(monkeypatch, tmp_path):
    """Makes only the given modules findable, and their wheels have the given versions."""
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    for name in ("XLA_FLAGS", "PATH", "TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        monkeypatch.setenv(name, "")
    for name in ("JAX_PLATFORMS", "TPU_WORKER_HOSTNAMES", "TPU_ACCELERATOR_TYPE"):
        monkeypatch.setenv(name, "cpu")
    real = importlib.metadata.version

    def install(modules, **versions):
        versions = {name.replace("_", "-"): version for name, version in versions.items()}

        def find_spec(name):
            if name not in modules:
                return None
            spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [str(tmp_path / name)]
            return spec

        def version(name):
            if name in versions:
                return versions[name]
            if name in ("libtpu", "jax-cuda12-plugin"):
                raise importlib.metadata.PackageNotFoundError(name)
            return real(name)

        monkeypatch.setattr("importlib.util.find_spec", find_spec)
        monkeypatch.setattr("importlib.metadata.version", version)

    return install


@pytest.fixture
def libtpu(monkeypatch):
    """The libtpu that jax names is 1.2.3."""
    requires = ['requests; extra == "tpu"', 'libtpu==1.2.3.*; extra == "tpu"']
    monkeypatch.setattr("importlib.metadata.requires", lambda name: requires)


def test_without_the_tpus_compiler_one_line_says_how_to_get_it(wheels, libtpu):
    wheels([])
    assert not compilers.is_available("tpu")
    with pytest.raises(UserError) as error:
        compilers.prepare(TPU)
    assert "pip install 'libtpu==1.2.3.*'" in str(error.value)
    assert "bloodjax[plan-tpu]" in str(error.value)


def test_without_the_gpus_compiler_one_line_says_how_to_get_it(wheels):
    wheels([])
    assert not compilers.is_available("cuda")
    with pytest.raises(UserError, match=r"pip install 'jax\[cuda12\]==.*bloodjax\[plan-gpu\]"):
        compilers.prepare(GPU)


@pytest.mark.parametrize("version", ["1.2.30", "1.2.4.1", "0.9"])
def test_the_libtpu_of_another_jax_is_refused(wheels, libtpu, version):
    wheels(["libtpu"], libtpu=version)
    with pytest.raises(UserError, match=rf"libtpu {version} is installed, but jax .* expects"):
        compilers.prepare(TPU)


def test_with_libtpu_nothing_asks_another_host_or_locks_others_out(wheels, libtpu):
    wheels(["libtpu"], libtpu="1.2.3.4")
    compilers.prepare(TPU)
    assert compilers.version(TPU) == "libtpu 1.2.3.4"
    assert os.environ["TPU_SKIP_MDS_QUERY"] == "1"
    assert os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] == "1"
    assert os.environ["JAX_PLATFORMS"] == "cpu"


def _install_cuda(tmp_path, ptxas):
    plugin = tmp_path / "jax_plugins.xla_cuda12" / "xla_cuda_plugin.so"
    tool = tmp_path / "nvidia" / "cuda_nvcc" / "bin" / "ptxas"
    for file in (plugin, tool) if ptxas else (plugin,):
        file.parent.mkdir(parents=True)
        file.touch()


def test_with_cuda_the_compiler_gets_its_toolkit_and_times_nothing(wheels, tmp_path):
    _install_cuda(tmp_path, ptxas=True)
    jaxlib = importlib.metadata.version("jaxlib")
    wheels(["jax_plugins.xla_cuda12", "nvidia"], jax_cuda12_plugin=jaxlib)
    compilers.prepare(GPU)
    toolkit = tmp_path / "nvidia" / "cuda_nvcc"
    assert f"--xla_gpu_cuda_data_dir={toolkit}" in os.environ["XLA_FLAGS"]
    assert "--xla_gpu_autotune_level=0" in os.environ["XLA_FLAGS"]
    assert os.environ["PATH"].endswith(str(toolkit / "bin"))


def test_a_plugin_of_another_jax_or_without_its_tools_is_refused(wheels, tmp_path):
    _install_cuda(tmp_path, ptxas=False)
    modules = ["jax_plugins.xla_cuda12", "nvidia"]
    wheels(modules, jax_cuda12_plugin="0.0.1")
    with pytest.raises(UserError, match=r"jax-cuda12-plugin 0\.0\.1 is installed, but jaxlib is"):
        compilers.prepare(GPU)
    wheels(modules, jax_cuda12_plugin=importlib.metadata.version("jaxlib"))
    with pytest.raises(UserError, match="ptxas"):
        compilers.prepare(GPU)


def test_this_jax_names_its_libtpu():
    """If this fails, a newer jax names libtpu in another form: `_wanted_libtpu` must know it."""
    named = [r for r in importlib.metadata.requires("jax") if r.startswith("libtpu")]
    assert named
    assert compilers._wanted_libtpu() in named[0]
    assert compilers._wanted_libtpu().startswith("==")
