import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bloodjax import config as config_lib
from bloodjax import models
from bloodjax.augment.policy import parse
from bloodjax.augment.tta import TTAConfig
from bloodjax.checkpoints.state import TrainState
from bloodjax.data.batches import DeviceDataset, epoch_order
from bloodjax.distributed import sharding
from bloodjax.metrics.calibration import Calibration
from bloodjax.models.convnext import ConvNeXt
from bloodjax.models.head import Head, Network
from bloodjax.models.simple_cnn import SimpleCNN
from bloodjax.training import losses
from bloodjax.training.executor import JitExecutor, PmapExecutor
from bloodjax.training.online_teacher import TeacherNetwork, WithTeacher
from bloodjax.training.optim import freeze_labels, optimizer
from bloodjax.training.step_config import Phase, StepConfig
from bloodjax.training.step_input import normalise

from .. import compilations
from ..trees import assert_trees_close, assert_trees_equal

# BatchNorm and dropout in the head of both; stochastic depth in the one, BatchNorm in the other.
BACKBONES = {
    "convnext": functools.partial(
        ConvNeXt, depths=(1, 1), widths=(8, 16), drop_path=0.5, layer_scale=1.0
    ),
    "simple_cnn": functools.partial(SimpleCNN, depths=(1, 1), widths=(8, 16), drop_path=0.2),
}
CLASSES, BATCH, EPOCHS = 3, 16, 2
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
WEIGHTS = np.array([0.5, 1.0, 2.0], np.float32)
# Plain gradients: Adam divides by their size, and would blow up the rounding of those that are 0.
SGD = Phase("none", optax.sgd(0.05, momentum=0.9))


def network(name, axis_name=None):
    backbone = BACKBONES[name](axis_name=axis_name)
    return Network(backbone, Head(CLASSES, hidden=(16,), axis_name=axis_name))


def step_config(name, axis_name=None, **changes):
    values = {"batch_size": BATCH, "seed": 1, "augment": parse("d4"), "label_smoothing": 0.1}
    values |= changes
    return StepConfig(network(name, axis_name), MEAN, STD, axis_name=axis_name, **values)


def images_and_labels():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, 40).astype(np.int32)
    images = rng.integers(0, 256, (40, 16, 16, 3)).astype(np.uint8)
    return images, labels


def data():
    return DeviceDataset.of(*images_and_labels())


@functools.cache
def initial(name):
    """Variables on the host."""
    return jax.device_get(models.init_variables(network(name), 16))


@functools.cache
def frozen_norms(name):
    """`SGD` of all parameters but BatchNorm's."""
    variables = initial(name)
    labels = freeze_labels(variables["params"], variables["batch_stats"], "batchnorm")
    transforms = {"train": SGD.tx, "freeze": optax.set_to_zero()}
    return Phase("batchnorm", optax.partition(transforms, labels))


def train(runner, name, phase=SGD, calls=(1,), epochs=EPOCHS, weights=WEIGHTS, part=None):
    """The state and metrics on the host, after calls of so many steps in each epoch."""
    ema = runner.step_config.ema > 0
    state = runner.replicate(TrainState.create(initial(name), phase.tx, ema=ema))
    on_device, weights = runner.replicate(part or data()), runner.replicate(weights)
    for epoch in range(epochs):
        order = runner.replicate(epoch_order(7, epoch, 40))
        for steps in calls:
            state, metrics = runner.train(phase, steps, state, on_device, order, weights)
    return jax.device_get((runner.unreplicate(state), metrics))


@pytest.fixture(scope="module", params=list(BACKBONES))
def on_eight(request):
    """A network's name, its runner on all devices, and what two epochs of two steps gave."""
    runner = JitExecutor(step_config(request.param))
    return request.param, runner, train(runner, request.param, calls=(1, 1))


@pytest.fixture(scope="module")
def runner():
    return JitExecutor(step_config("simple_cnn"))


@pytest.mark.parametrize("executor", [JitExecutor, PmapExecutor])
def test_devices_that_do_not_divide_a_training_batch_predict(executor):
    config = step_config("simple_cnn", executor.axis_name, batch_size=12)
    images, variables = images_and_labels()[0][:13], initial("simple_cnn")
    runner = executor(config)
    found = runner.predict(runner.shard_state(variables), images, "none")
    logits = network("simple_cnn").apply(variables, normalise(jnp.asarray(images), MEAN, STD))
    np.testing.assert_allclose(found, jax.nn.softmax(logits), atol=1e-5)


@pytest.mark.full
def test_training_moves_and_counts(on_eight):
    name, _, (state, metrics) = on_eight
    assert state.step == 4
    assert metrics.count == 4 * BATCH
    assert 0 <= metrics.correct <= metrics.count
    assert metrics.loss > 0
    assert metrics.bad_step == -1
    before = initial(name)
    for old, new in ((before["params"], state.params), (before["batch_stats"], state.batch_stats)):
        changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), old, new)
        assert all(jax.tree.leaves(changed["head"]))


@pytest.mark.full
def test_one_device_gives_the_same_as_eight(on_eight):
    name, _, expected = on_eight
    single = JitExecutor(step_config(name), devices=jax.devices()[:1])
    assert_trees_close(train(single, name, calls=(1, 1)), expected)


@pytest.mark.full
def test_pmap_gives_the_same_as_jit(on_eight):
    name, _, expected = on_eight
    mapped = PmapExecutor(step_config(name, sharding.AXIS))
    assert_trees_close(train(mapped, name, calls=(1, 1)), expected)


RUNNERS = {
    "one": lambda name, **changes: JitExecutor(
        step_config(name, **changes), devices=jax.devices()[:1]
    ),
    "eight": lambda name, **changes: JitExecutor(step_config(name, **changes)),
    "pmap": lambda name, **changes: PmapExecutor(step_config(name, sharding.AXIS, **changes)),
}


@pytest.fixture(scope="module")
def whole_batches():
    """What ConvNeXt comes to without accumulation, BatchNorm (the head's) in inference mode."""
    return train(RUNNERS["one"]("convnext"), "convnext", frozen_norms("convnext"), calls=(1, 1))


@pytest.mark.full
@pytest.mark.parametrize("kind", RUNNERS)
def test_accumulated_steps_are_those_of_the_whole_batch(kind, whole_batches):
    # Dropout, stochastic depth and augmentation among them.
    runner = RUNNERS[kind]("convnext", accumulate_steps=2)
    found = train(runner, "convnext", frozen_norms("convnext"), calls=(1, 1))
    assert_trees_close(found, whole_batches)


MIXED = parse("d4|choice('standard', 0.5, 2)|erase(0.3, p=0.3)|mixup(0.4, p=0.4)|cutmix(p=0.4)")


@pytest.fixture(scope="module")
def mixed_on_one():
    """Under class weights, with BatchNorm frozen."""
    runner = RUNNERS["one"]("simple_cnn", augment=MIXED)
    return train(runner, "simple_cnn", frozen_norms("simple_cnn"), calls=(1, 1))


@pytest.mark.full
@pytest.mark.parametrize("kind", [pytest.param("eight", marks=pytest.mark.slow), "pmap"])
def test_mixed_pictures_are_the_same_on_any_number_of_devices(kind, mixed_on_one):
    runner = RUNNERS[kind]("simple_cnn", augment=MIXED)
    found = train(runner, "simple_cnn", frozen_norms("simple_cnn"), calls=(1, 1))
    assert_trees_close(found, mixed_on_one, 1e-4)


def test_mixed_pictures_leave_a_frozen_batchnorm_alone(mixed_on_one):
    state, _ = mixed_on_one
    assert_trees_equal(state.batch_stats, initial("simple_cnn")["batch_stats"])
    plain, _ = train(
        RUNNERS["one"]("simple_cnn"), "simple_cnn", frozen_norms("simple_cnn"), calls=(1, 1)
    )
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), plain.params, state.params)
    assert any(jax.tree.leaves(changed))


# Three views of each image, a teacher, and a smaller size.
TAUGHT = {
    "augment": parse("d4|choice('standard', 0.5, 2)|mixup(0.4, p=0.5)"),
    "consistency": 12.0,
    "distill_weight": 0.7,
    "distill_temperature": 2.0,
}


def train_taught(kind, **changes):
    teacher = np.random.default_rng(1).dirichlet(np.ones(CLASSES), 40).astype(np.float32)
    phase = dataclasses.replace(frozen_norms("convnext"), size=12)
    weights = np.linspace(0.5, 1.5, 40, dtype=np.float32)
    part = DeviceDataset.of(*images_and_labels(), teacher, weights)
    runner = RUNNERS[kind]("convnext", **TAUGHT | changes)
    return train(runner, "convnext", phase, calls=(1, 1), part=part)


@pytest.fixture(scope="module")
def taught_on_one():
    """Dropout and stochastic depth among it."""
    return train_taught("one")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "steps"), [("eight", 1), ("pmap", 1), ("one", 2), ("eight", 2)])
def test_views_and_teacher_are_the_same_on_any_devices_and_in_micro_batches(
    kind, steps, taught_on_one
):
    assert_trees_close(train_taught(kind, accumulate_steps=steps), taught_on_one, 1e-4)


@pytest.mark.slow
def test_an_online_teacher_is_the_same_on_any_devices_and_in_micro_batches():
    identity = TeacherNetwork(
        network("simple_cnn"), MEAN, STD, 12, Calibration("temperature", 1.5), (2, 0, 1)
    )
    found = {}
    for kind, steps in (("one", 1), ("eight", 1), ("pmap", 1), ("one", 2)):
        changes = {**TAUGHT, "accumulate_steps": steps, "teachers": (identity,)}
        runner = RUNNERS[kind]("convnext", **changes)
        weights = WithTeacher(WEIGHTS, (initial("simple_cnn"),))
        phase = frozen_norms("convnext")
        found[kind, steps] = train(runner, "convnext", phase, epochs=1, weights=weights)
    expected = found.pop(("one", 1))
    for each in found.values():
        assert_trees_close(each, expected, 1e-4)
    plain = train(
        RUNNERS["one"]("convnext", **TAUGHT | {"distill_weight": 0.0}),
        "convnext",
        frozen_norms("convnext"),
        epochs=1,
    )
    assert abs(plain[1].loss - expected[1].loss) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("option", ["consistency", "distill_weight"])
def test_views_and_teacher_change_the_training(option, taught_on_one):
    state, metrics = train_taught("one", **{option: 0.0})
    assert metrics.count == 4 * BATCH
    assert abs(metrics.loss - taught_on_one[1].loss) > 0.1
    kernels = [s.params["head"]["logits"]["kernel"] for s in (state, taught_on_one[0])]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-4


@pytest.mark.full
@pytest.mark.parametrize(("name", "accumulate_steps"), [("convnext", 1), ("simple_cnn", 2)])
def test_a_head_trains_on_cached_features_as_on_pictures(name, accumulate_steps):
    runner = JitExecutor(step_config(name, accumulate_steps=accumulate_steps))
    expected = train(runner, name, Phase("backbone", SGD.tx), calls=(1, 1))
    images, labels = images_and_labels()
    features = runner.features(runner.replicate(initial(name)), images)
    assert features.shape == (40, 8, 16)
    cached = DeviceDataset.of(features, labels)
    found = train(runner, name, Phase("backbone", SGD.tx, True), calls=(1, 1), part=cached)
    assert_trees_close(found, expected)
    for kind in ("params", "batch_stats"):
        trees = (getattr(found[0], kind), initial(name)[kind])
        one, other = (tree.get("backbone", {}) for tree in trees)
        assert_trees_equal(one, other)


# What needs all of a batch or of a state: BatchNorm in micro-batches, a loss that is not linear in
# the weights of the classes, and an average of weights and of BatchNorm's own averages.
TOGETHER = {
    "accumulate_steps": 2,
    "focal_gamma": 2.0,
    "logit_shift": (-0.5, -1.0, -2.0),
    "ema": 0.15,
}


@pytest.fixture(scope="module")
def together_on_one():
    """The states after one step and after two, and the metrics of each."""
    runner = RUNNERS["one"]("simple_cnn", **TOGETHER)
    return [train(runner, "simple_cnn", calls=(1,) * n, epochs=1) for n in (1, 2)]


@pytest.mark.full
@pytest.mark.parametrize("kind", ["eight", "pmap"])
def test_micro_batches_focal_loss_and_average_are_the_same_on_any_devices(kind, together_on_one):
    runner = RUNNERS[kind]("simple_cnn", **TOGETHER)
    found = train(runner, "simple_cnn", calls=(1, 1), epochs=1)
    assert_trees_close(found, together_on_one[-1])


@pytest.mark.full
def test_the_average_is_that_of_the_weights_after_each_step(together_on_one):
    expected = initial("simple_cnn")
    for t, (state, _) in enumerate(together_on_one):
        decay = min(0.15, (1 + t) / (10 + t))
        weights = np.float32([1 - decay, decay])
        expected = jax.tree.map(functools.partial(mix, weights), state.variables, expected)
    last, _ = together_on_one[-1]
    assert last.ema.count == 2
    assert_trees_close(last.averaged, expected)


def mix(weights, *leaves):
    return sum(weight * leaf for weight, leaf in zip(weights, leaves, strict=True))


@pytest.mark.full
def test_a_focal_loss_and_shifted_logits_change_the_training(together_on_one):
    runner = RUNNERS["one"]("simple_cnn", accumulate_steps=2)
    _, plain = train(runner, "simple_cnn", calls=(1, 1), epochs=1)
    assert abs(together_on_one[-1][1].loss - plain.loss) > 0.1


def test_new_steps_epochs_and_weights_compile_nothing(on_eight):
    name, runner, _ = on_eight
    with compilations.counted() as compiled:
        train(runner, name, calls=(1, 1), weights=WEIGHTS[::-1].copy())
    assert compiled.count == 0


def test_steps_in_one_call_are_as_those_in_single_calls(runner):
    expected = train(runner, "simple_cnn", calls=(1, 1))
    assert_trees_close(train(runner, "simple_cnn", calls=(2,)), expected, 1e-6)


def test_the_state_is_donated_and_the_metrics_are_not(runner):
    state = runner.replicate(TrainState.create(initial("simple_cnn"), SGD.tx))
    arguments = (
        runner.replicate(data()),
        runner.replicate(epoch_order(7, 0, 40)),
        runner.replicate(WEIGHTS),
    )
    after, metrics = runner.train(SGD, 1, state, *arguments)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    runner.train(SGD, 1, after, *arguments)
    assert metrics.count == BATCH


BAD = np.full(3, np.nan, np.float32)
SKIPPING = {
    "simple_cnn": {"accumulate_steps": 2, "ema": 0.9},
    "convnext": {},
}


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "kind"),
    [("simple_cnn", "one"), ("simple_cnn", "pmap"), ("convnext", "eight"), ("convnext", "pmap")],
)
def test_a_step_that_is_not_finite_is_skipped(name, kind):
    runner = RUNNERS[kind](name, **SKIPPING[name])
    arguments = (runner.replicate(data()), runner.replicate(epoch_order(7, 0, 40)))
    ema = "ema" in SKIPPING[name]
    state = runner.replicate(TrainState.create(initial(name), SGD.tx, ema=ema))
    for weights, bad_step in ((WEIGHTS, -1), (BAD, 1), (BAD, 1), (WEIGHTS, -1)):
        before = jax.device_get(runner.unreplicate(state))
        state, metrics = runner.train(SGD, 1, state, *arguments, runner.replicate(weights))
        after = jax.device_get(runner.unreplicate(state))
        assert (after.step, metrics.bad_step) == (before.step + 1, bad_step)
        same = before.replace(step=after.step, metrics=after.metrics)
        unchanged = jax.tree.map(np.array_equal, same, after)
        if bad_step < 0:
            assert not all(jax.tree.leaves(unchanged.params))
        else:
            assert all(jax.tree.leaves(unchanged))
            assert after.metrics.replace(bad_step=-1) == before.metrics.replace(bad_step=-1)
    assert metrics.count == 2 * BATCH
    assert np.isfinite(metrics.loss)


@pytest.mark.full
def test_a_gradient_that_is_not_finite_is_skipped_though_the_loss_is(monkeypatch):
    original = losses.weighted_cross_entropy

    def steep(logits, *arguments):
        total, rest = original(logits, *arguments)
        return total + jnp.sqrt(jnp.sum(logits * 0.0)), rest  # 0, of slope infinity times 0

    monkeypatch.setattr(losses, "weighted_cross_entropy", steep)
    state, metrics = train(JitExecutor(step_config("simple_cnn")), "simple_cnn", epochs=1)
    assert (state.step, metrics.bad_step, metrics.count) == (1, 0, 0)
    assert_trees_equal(state.params, initial("simple_cnn")["params"])


@pytest.mark.full
@pytest.mark.parametrize("freeze", ["batchnorm", "backbone", "stages:1", "stages:1+batchnorm"])
def test_what_is_frozen_stays_bit_identical(runner, freeze):
    before = initial("simple_cnn")
    options = config_lib.defaults().phases.finetune
    options.freeze = freeze
    options.schedule.warmup = 0.0
    tx = optimizer(options, 2, before["params"], before["batch_stats"])
    state, _ = train(runner, "simple_cnn", Phase(freeze, tx), calls=(1, 1), epochs=1)
    for kind, after in (("params", state.params), ("batch_stats", state.batch_stats)):
        for path, old in jax.tree_util.tree_leaves_with_path(before[kind]):
            new = functools.reduce(lambda tree, key: tree[key.key], path, after)
            in_backbone, in_norm = path[0].key == "backbone", "norm" in path[-2].key
            in_stages = in_backbone and path[1].key.startswith("stage_0")
            frozen = {
                "batchnorm": in_norm,
                "backbone": in_backbone,
                "stages:1": in_stages,
                "stages:1+batchnorm": in_stages or in_norm,
            }[freeze]
            assert np.array_equal(old, new) == frozen, path


@pytest.mark.full
@pytest.mark.parametrize("parallel", ["jit", "pmap"])
def test_predict_fills_the_last_batch_up_and_averages_views(runner, parallel):
    if parallel == "pmap":
        runner = PmapExecutor(step_config("simple_cnn", sharding.AXIS))
    variables, images = initial("simple_cnn"), images_and_labels()[0][:21]
    placed = runner.replicate(variables)
    apply = jax.jit(network("simple_cnn").apply)
    logits = apply(variables, normalise(jnp.asarray(images), MEAN, STD))
    plain = runner.predict(placed, images, "none")
    assert plain.shape == (21, CLASSES)
    assert_trees_close(plain, jax.nn.softmax(logits))
    turned = [
        runner.predict(placed, np.rot90(mirror, k, axes=(1, 2)), "none")
        for mirror in (images, images[:, ::-1])
        for k in range(4)
    ]
    assert_trees_close(runner.predict(placed, images, "d4"), np.mean(turned, axis=0))
    each = runner.each_view(placed, images, "d4")
    assert each.shape == (21, 8, CLASSES)
    assert_trees_close(each.mean(axis=1), np.mean(turned, axis=0))
    first = TTAConfig("d4", weights=(("image", 1.0),))
    assert_trees_close(runner.predict(placed, images, first), plain)
    many = runner.each_view(placed, images, "d4+robust")
    assert_trees_close(runner.predict(placed, images, "d4+robust"), many.mean(axis=1))
    features, found = runner.describe(placed, images)
    assert features.shape == (21, 16)
    assert found.shape == (21, CLASSES)
    assert_trees_close(found, logits)


@pytest.mark.full
def test_a_registered_network_trains():
    model = models.build("simple_cnn_050", CLASSES, hidden=(16,))
    images, labels = images_and_labels()
    variables = models.init_variables(model, 16)
    options = config_lib.defaults().phases.finetune
    options.learning_rate = 3e-3
    tx = optimizer(options, 2, variables["params"], variables["batch_stats"])
    phase, steps = (
        Phase("none", tx),
        JitExecutor(StepConfig(model, MEAN, STD, BATCH), jax.devices()[:1]),
    )
    # A colour for each class, which the network has to find.
    images = (images // 4 + 150 * np.eye(3)[labels][:, None, None]).astype(np.uint8)
    state = steps.replicate(TrainState.create(variables, tx))
    part = steps.replicate(DeviceDataset.of(images, labels))
    for epoch in range(15):
        order = steps.replicate(epoch_order(0, epoch, 40))
        for _ in range(2):
            state, _ = steps.train(
                phase, 1, state, part, order, steps.replicate(np.ones(3, np.float32))
            )
    found = steps.predict(state.variables, images, "none").argmax(-1)
    assert np.mean(found == labels) > 0.9
