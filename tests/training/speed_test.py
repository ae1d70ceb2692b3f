"""What training costs, in figures that noise cannot touch: operations, compilations, transfers.

`speed_figures.json` holds XLA's floating-point operations of a training step for each version of
jax. They are counted on the program as it is lowered for the CPU, which does not depend on the
machine; a loop's body counts once, whatever its number of turns. They are written anew, where a
change means to alter them or for a new jax, by

python -m pytest tests/training/speed_test.py --write-speed-figures
"""

import json
import pathlib
import types

import jax
import numpy as np
import pytest

from bloodjax import run
from bloodjax.checkpoints.state import TrainState
from bloodjax.data.batches import DeviceDataset, epoch_order
from bloodjax.evaluation import evaluator
from bloodjax.training import factory, optim, timing, trainer
from bloodjax.training.executor import JitExecutor
from bloodjax.training.step_config import Phase

from .. import compilations

FIGURES = pathlib.Path(__file__).with_name("speed_figures.json")
JAX = ".".join(jax.__version__.split(".")[:2])
NETWORKS = ("simple_cnn", "efficientnet_lite0", "convnext_atto")
CLASSES, IMAGES, BATCH = 8, 40, 16

pytestmark = pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="the figures are those of the program for a CPU"
)


def prepared(config):
    """The steps on one device, the last phase, its state's shapes, and a step's other arguments."""
    steps = JitExecutor(factory.step_config(config, CLASSES), jax.devices()[:1])
    variables = jax.eval_shape(lambda: factory.variables(config, CLASSES))
    options = config.phases.finetune
    tx = optim.optimizer(options, 5, variables["params"], variables["batch_stats"])
    state = jax.eval_shape(lambda drawn: TrainState.create(drawn, tx), variables)
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3)).astype(np.uint8)
    data = DeviceDataset.of(images, np.arange(IMAGES, dtype=np.int32) % CLASSES)
    arguments = (data, epoch_order(0, 0, IMAGES), np.ones(CLASSES, np.float32))
    return steps, Phase(options.freeze, tx), state, steps.replicate(arguments)


def lowered(steps, phase, state, arguments):
    return steps._train.lower(phase, 1, state, *arguments)


@pytest.mark.full
@pytest.mark.parametrize("freeze", ["none", "backbone"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_has_as_many_operations_as_before(name, freeze, make_config, request):
    config = make_config(**{"model.name": name, "phases.finetune.freeze": freeze})
    found = lowered(*prepared(config)).cost_analysis()["flops"]
    figures, key = json.loads(FIGURES.read_text("utf-8")), f"{name}, freeze {freeze}"
    if request.config.getoption("--write-speed-figures"):
        figures.setdefault(JAX, {})[key] = int(found)
        FIGURES.write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n", "utf-8")
    elif JAX not in figures:
        pytest.skip(f"no figures for jax {JAX} yet: --write-speed-figures writes them")
    assert found == pytest.approx(figures[JAX][key], rel=1e-3), f"{name}: see {__file__}"


@pytest.fixture(scope="module")
def small(make_config):
    return prepared(make_config())


@pytest.mark.full
def test_xla_adds_no_operations_and_takes_the_state_s_memory_for_the_new_one(small):
    program, state = lowered(*small), small[2]
    executable = program.compile()
    assert executable.cost_analysis()["flops"] < 1.05 * program.cost_analysis()["flops"]
    memory = executable.memory_analysis()
    assert memory.alias_size_in_bytes == sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)
    )


@pytest.mark.full
def test_steps_within_an_epoch_take_nothing_from_the_host(small, make_config):
    steps, phase, _, arguments = small
    variables = factory.variables(make_config(), CLASSES)
    state = steps.replicate(TrainState.create(variables, phase.tx))
    state, _ = steps.train(phase, 1, state, *arguments)
    with jax.transfer_guard("disallow_explicit"), compilations.counted() as compiled:
        state, sums = steps.train(phase, 1, state, *arguments)
    assert sums.count == 2 * BATCH
    assert compiled.count == 0


@pytest.fixture(scope="module")
def watched(make_config, tmp_path_factory):
    """A run whose clock moves by 0.3 s a call: compilations and syncs with the device by epoch."""
    clock = types.SimpleNamespace(now=0.0)
    seen = {"compilations": [], "syncs": []}
    jit_train, device_get, syncs = JitExecutor.train, jax.device_get, []

    class Watched(trainer.Trainer):
        def train_epoch(self, progress):
            syncs.clear()
            throughput = super().train_epoch(progress)
            seen["syncs"].append(len(syncs))
            seen["compilations"].append((progress.phase, compiled.count))
            return throughput

    def counted_train(self, *arguments):
        clock.now += 0.3
        return jit_train(self, *arguments)

    def counted_get(tree):
        syncs.append(clock.now)
        return device_get(tree)

    # Eleven steps an epoch, two a call: the last of an epoch's six calls takes one.
    config = make_config(
        batch_size=8,
        steps_per_call=2,
        **{"data.train": "synthetic:90", "data.validation": "0", "data.test": "0"},
        **{"phases.head.epochs": 2, "phases.finetune.epochs": 2},
    )
    with pytest.MonkeyPatch.context() as patch, compilations.counted() as compiled:
        patch.setattr(timing, "time", types.SimpleNamespace(monotonic=lambda: clock.now))
        patch.setattr(trainer, "Trainer", Watched)
        patch.setattr(JitExecutor, "train", counted_train)
        patch.setattr(jax, "device_get", counted_get)
        patch.setattr(evaluator, "finish", lambda *_: {})
        run.train(config, tmp_path_factory.mktemp("watched"))
    return seen


@pytest.mark.full
def test_a_run_compiles_two_lengths_of_call_in_each_phase_and_no_more(watched):
    assert watched["compilations"] == [(0, 2), (0, 2), (1, 4), (1, 4)]


@pytest.mark.full
def test_a_run_syncs_with_the_device_once_a_second_at_most(watched):
    # After four calls, that is 1.2 s, and at the epoch's end.
    assert watched["syncs"] == [2] * 4
