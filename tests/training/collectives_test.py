"""What a compiled step moves between devices, counted in its program, against what it must.

The network's batch has as many bytes as its parameters have, so that a batch or a map that crosses
the devices is seen as well as a parameter that does so twice.
"""

import collections
import functools
import math

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from bloodjax.augment.policy import parse
from bloodjax.augment.tta import TTAConfig
from bloodjax.checkpoints.state import TrainState
from bloodjax.data.batches import DeviceDataset
from bloodjax.distributed import sharding
from bloodjax.models.head import Head, Network
from bloodjax.models.simple_cnn import SimpleCNN
from bloodjax.planning import program
from bloodjax.training import gradients, optim, step_input, train_step
from bloodjax.training.executor import JitExecutor
from bloodjax.training.step_config import Phase, StepConfig

CLASSES, BATCH, IMAGES, SIZE = 3, 32, 64, 16
WIDTHS = (32, 128)
NETWORK = Network(SimpleCNN(depths=(1, 1), widths=WIDTHS), Head(CLASSES, hidden=(64,)))
# Beside gradients and parameters, a step sums a few numbers: loss, examples, squares of a norm.
SCALARS = 4 * 64
SHARE = 1.05  # of what is needed
# Of the only BatchNorm that is trained above a frozen backbone. Nothing before it has a gradient.
HEAD_STATISTICS = 2 * 4 * WIDTHS[-1]


@functools.cache
def shapes():
    return jax.eval_shape(NETWORK.init, jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))


def make(layout, **changes):
    options = {"augment": parse("d4"), "ema": 0.9, **changes}
    step_config = StepConfig(NETWORK, (0.5,) * 3, (0.25,) * 3, BATCH, **options)
    return JitExecutor(step_config, layout=layout)


def phase_of(freeze="none", cached=False):
    variables = shapes()
    labels = optim.freeze_labels(variables["params"], variables["batch_stats"], freeze)
    transforms = {"train": optax.sgd(0.1, momentum=0.9), "freeze": optax.set_to_zero()}
    return Phase(freeze, optax.partition(transforms, labels), cached)


def placed(tree, shardings):
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree, shardings
    )


def arguments(executor, phase):
    """Shapes of a training step's arguments, as a run places them."""
    state = jax.eval_shape(functools.partial(TrainState.create, tx=phase.tx, ema=True), shapes())
    everywhere = sharding.replicated(executor.layout.mesh)
    images = jax.ShapeDtypeStruct((IMAGES, SIZE, SIZE, 3), jnp.uint8)
    if phase.cached:
        images = jax.ShapeDtypeStruct((IMAGES, 8, WIDTHS[-1]), jnp.float32)
    labels = jax.ShapeDtypeStruct((IMAGES,), jnp.int32)
    data = jax.eval_shape(DeviceDataset.of, images, labels)
    weights = jax.ShapeDtypeStruct((CLASSES,), jnp.float32)
    rest = placed((data, labels, weights), everywhere)
    return (placed(state, executor.layout.of(state)), *rest)


def moved(compiled):
    """Bytes by kind of collective, and the program."""
    analysed = program.analyse(compiled)
    total = collections.Counter()
    for op in analysed.collectives:
        total[op.collective] += op.payload
    return total, analysed


def train(executor, phase):
    return moved(executor.lower(phase, 1, *arguments(executor, phase)).compile())[0]


def nbytes(leaves):
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def crossing(layout, tree):
    """The arrays of `tree` that `layout` splits."""
    specs = jax.tree.leaves(layout.specs(tree), is_leaf=lambda x: isinstance(x, PartitionSpec))
    return [
        x for x, spec in zip(jax.tree.leaves(tree), specs, strict=True) if sharding.AXIS in spec
    ]


def needs(executor, phase, statistics=0):
    """Bytes that a training step must move, by kind; `statistics` of BatchNorm in all passes."""
    params, stats = shapes()["params"], shapes()["batch_stats"]
    if phase.cached:
        params, stats = ({"head": tree["head"]} for tree in (params, stats))
    labels = optim.freeze_labels(params, stats, phase.freeze)
    trained = jax.tree.map(lambda x, label: x if label == "train" else None, params, labels)
    scattered = nbytes(crossing(executor.layout, trained))
    return collections.Counter(
        {
            "all-gather": nbytes(crossing(executor.layout, params)),
            "reduce-scatter": scattered,
            "all-reduce": nbytes(jax.tree.leaves(trained)) - scattered + statistics,
        }
    )


def check(found, needed):
    """Fails if a step moves more than it must, or less, which means that it computes too much."""
    assert set(found) <= {kind for kind, size in needed.items() if size} | {"all-reduce"}
    for kind, size in needed.items():
        assert size <= found[kind] <= SHARE * size + SCALARS, kind


def statistics(passes):
    """Bytes of the statistics of every BatchNorm: two forward, and two of their gradients."""
    channels = sum(leaf.shape[0] for leaf in jax.tree.leaves(shapes()["batch_stats"])) // 2
    return passes * 4 * 4 * channels


CASES = {
    "none": ({}, "none", 1),
    "micro": ({"accumulate_steps": 2}, "none", 2),
    "mixed": ({"augment": parse("d4|mixup(0.4, p=0.5)|cutmix(1.0, p=0.5)")}, "none", 1),
    "frozen norms": ({"accumulate_steps": 2}, "batchnorm", 0),
    "frozen backbone": ({}, "backbone", 0),
    "robust": (
        {"augment": parse("d4|choice('microscope', 0.8, 2)|erase(0.5, p=0.25)")},
        "batchnorm",
        0,
    ),
}


@pytest.mark.full
@pytest.mark.parametrize("layout", sharding.LAYOUTS)
@pytest.mark.parametrize(
    "case", [*list(CASES)[:-1], pytest.param("robust", marks=pytest.mark.slow)]
)
def test_a_step_moves_parameters_and_gradients_once_and_nothing_else(layout, case):
    changes, freeze, passes = CASES[case]
    executor, phase = make(layout, **changes), phase_of(freeze)
    total = statistics(passes)
    if case == "frozen backbone":
        total = HEAD_STATISTICS
    check(train(executor, phase), needs(executor, phase, total))


@pytest.mark.full
@pytest.mark.parametrize("layout", sharding.LAYOUTS)
def test_a_step_on_cached_features_moves_the_head_only(layout):
    executor, phase = make(layout), phase_of("backbone", cached=True)
    check(train(executor, phase), needs(executor, phase, HEAD_STATISTICS))


@pytest.mark.full
@pytest.mark.parametrize("layout", sharding.LAYOUTS)
@pytest.mark.parametrize("step", ["predict", "tta", "features"])
def test_a_prediction_moves_parameters_and_its_results(layout, step):
    executor = make(layout)
    variables = placed(shapes(), executor.layout.of(shapes()))
    images = jax.ShapeDtypeStruct(
        (BATCH, SIZE, SIZE, 3), jnp.uint8, sharding=sharding.by_batch(executor.layout.mesh)
    )
    if step == "features":
        lowered = executor.lower_features(variables, images)
    else:
        views = "none" if step == "predict" else TTAConfig("d4")
        lowered = executor.lower_predict(variables, images, views)
    found, _ = moved(lowered.compile())
    used = shapes()
    if step == "features":
        used = {kind: tree["backbone"] for kind, tree in used.items()}
    gathered = nbytes(crossing(executor.layout, used))
    results = nbytes([lowered.out_info])
    check(found, collections.Counter({"all-gather": gathered + results}))


def refuses(executor, phase, passes=1):
    with pytest.raises(AssertionError):
        check(train(executor, phase), needs(executor, phase, statistics(passes)))


@pytest.mark.full
def test_a_batch_that_is_not_split_is_seen():
    executor = make("data")
    executor._train = jax.jit(
        functools.partial(train_step.train_steps, executor.step_config), static_argnums=(0, 1)
    )
    refuses(executor, phase_of())


@pytest.mark.full
def test_a_parameter_that_is_gathered_twice_is_seen(monkeypatch):
    once = sharding.Layout.gather

    def twice(self, tree, *rest):
        double = once(self, jax.tree.map(lambda x: 2 * x, tree), *rest)
        return jax.tree.map(lambda x, y: y - x, once(self, tree, *rest), double)

    monkeypatch.setattr(sharding.Layout, "gather", twice)
    refuses(make("fsdp"), phase_of())


@pytest.mark.full
@pytest.mark.parametrize("layout", sharding.LAYOUTS)
def test_a_map_that_is_gathered_is_seen(monkeypatch, layout):
    own = step_input.normalise

    def others_too(images, mean, std):
        images = own(images, mean, std)
        every = lax.all_gather(images, sharding.AXIS)
        return images + every[0] - every[1]

    monkeypatch.setattr(step_input, "normalise", others_too)
    refuses(make(layout), phase_of())


@pytest.mark.full
@pytest.mark.parametrize("layout", sharding.LAYOUTS)
def test_a_gradient_that_is_summed_in_each_micro_batch_is_seen(monkeypatch, layout):
    own = gradients._accumulate

    def summed_each_time(number, function, *arguments):
        def one(*arguments):
            (loss, correct, grads), stats = function(*arguments)
            return (loss, correct, lax.pmean(grads, sharding.AXIS)), stats

        return own(number, one, *arguments)

    monkeypatch.setattr(gradients, "_accumulate", summed_each_time)
    refuses(make(layout, accumulate_steps=2), phase_of("batchnorm"), 0)
