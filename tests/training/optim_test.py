import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

from bloodjax import config as config_lib
from bloodjax import models
from bloodjax.models.layer_depth import depths
from bloodjax.training import optim
from bloodjax.training.optim import (
    clip_by_precomputed_norm,
    decay_mask,
    freeze_labels,
    milestones,
    optimizer,
    phase_schedule,
    sgdr,
    trainable_grad_norm,
    wsd,
)

from ..trees import assert_trees_equal

CYCLES = [(1.0, 1.0), (2.0, 1.0), (2.0, 0.9), (1.5, 0.5)]
# Every leaf has a shape of its own, by which its moments are told.
PARAMS = {
    "backbone": {
        "conv": {"kernel": jnp.ones(2), "bias": jnp.ones(3)},
        "conv_norm": {"scale": jnp.ones(4), "bias": jnp.ones(5)},
        "layer_norm": {"scale": jnp.ones(6), "bias": jnp.ones(7)},
        "scale": jnp.ones(8),
    },
    "head": {
        "norm": {"scale": jnp.ones(9), "bias": jnp.ones(10)},
        "logits": {"kernel": jnp.ones(11), "bias": jnp.ones(12)},
    },
}
STATS = {
    "backbone": {"conv_norm": {"mean": jnp.ones(4), "var": jnp.ones(4)}},
    "head": {"norm": {"mean": jnp.ones(9), "var": jnp.ones(9)}},
}
BATCH_NORMS, BACKBONE = {4, 5, 9, 10}, set(range(2, 9))


def sizes(tree, value):
    """The sizes of PARAMS' leaves where `tree` has `value`."""
    pairs = zip(jax.tree.leaves(PARAMS), jax.tree.leaves(tree), strict=True)
    return {leaf.size for leaf, found in pairs if found == value}


def phase(**changes):
    options = config_lib.defaults().phases.finetune
    options.schedule.warmup = 0.0
    options.update(changes)
    return options


def rates(schedule, steps):
    return np.asarray(jax.vmap(schedule)(jnp.arange(steps)))


def cosine_with_restarts(steps, peak, first, t_mul, m_mul, alpha):
    """The paper's formula in float64, cycle after cycle; NaN at the restarts themselves."""
    found, start, length, top = np.full(steps, np.nan), 0.0, float(first), 1.0
    while start < steps:
        inside = np.arange(int(start) + 1, min(int(np.ceil(start + length)), steps))
        found[inside] = 0.5 * top * (1 + np.cos(np.pi * (inside - start) / length))
        start, length, top = start + length, length * t_mul, top * m_mul
    return peak * ((1 - alpha) * found + alpha)


@pytest.mark.parametrize("alpha", [0.0, 0.1])
@pytest.mark.parametrize(("t_mul", "m_mul"), CYCLES)
def test_sgdr_is_the_papers_formula(t_mul, m_mul, alpha):
    schedule = sgdr(0.3, 10, t_mul=t_mul, m_mul=m_mul, alpha=alpha)
    found = rates(schedule, 150)
    expected = cosine_with_restarts(150, 0.3, 10, t_mul, m_mul, alpha)
    known = ~np.isnan(expected)
    assert known.sum() > 130
    np.testing.assert_allclose(found[known], expected[known], rtol=1e-4, atol=1e-6)
    assert found[0] == pytest.approx(0.3)


@pytest.mark.parametrize("alpha", [0.0, 0.1])
@pytest.mark.parametrize(("t_mul", "m_mul"), CYCLES)
def test_sgdr_is_kerass_at_every_step(t_mul, m_mul, alpha, monkeypatch):
    monkeypatch.setitem(os.environ, "KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    reference = keras.optimizers.schedules.CosineDecayRestarts(0.3, 10, t_mul, m_mul, alpha)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected = np.asarray(jax.vmap(reference)(jnp.arange(150)))
    found = rates(sgdr(0.3, 10, t_mul=t_mul, m_mul=m_mul, alpha=alpha), 150)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.full
def test_warm_up_is_linear_and_delays_the_first_cycle():
    found = rates(sgdr(0.2, 10, warmup_steps=5, t_mul=2.0), 40)
    np.testing.assert_allclose(found[:5], 0.2 * np.arange(5) / 5, rtol=1e-6)
    np.testing.assert_array_equal(found[5:], rates(sgdr(0.2, 10, t_mul=2.0), 35))


def test_a_phases_lengths_are_in_epochs():
    options = config_lib.defaults().phases.finetune
    options.epochs = 4
    # One cycle over what the warm-up of one epoch leaves.
    found = rates(phase_schedule(options, 5), 20)
    expected = rates(sgdr(options.learning_rate, 15, warmup_steps=5), 20)
    np.testing.assert_array_equal(found, expected)
    options.schedule.update(warmup=0.0, first_cycle=1.0, t_mul=1.0)
    found = rates(phase_schedule(options, 5), 20)
    np.testing.assert_allclose(found[[0, 5, 10]], options.learning_rate, rtol=1e-6)
    # A cycle of less than half a step is one of a step, and not of the whole phase.
    options.schedule.first_cycle = 0.05
    found = rates(phase_schedule(options, 5), 20)
    np.testing.assert_allclose(found, options.learning_rate, rtol=1e-6)


@pytest.mark.parametrize(
    ("freeze", "expected"), [("none", set()), ("batchnorm", BATCH_NORMS), ("backbone", BACKBONE)]
)
def test_freeze_labels(freeze, expected):
    labels = freeze_labels(PARAMS, STATS, freeze)
    assert sizes(labels, "freeze") == expected
    assert sizes(labels, "train") == set(range(2, 13)) - expected


def test_freeze_labels_of_stages():
    names = ("stem", "stage_0_block_0", "stage_1_block_0", "last")
    backbone = {name: {"kernel": np.zeros(1)} for name in names}
    backbone |= {f"{name}_norm": {"scale": np.zeros(1)} for name in ("stem", "last")}
    params = {"backbone": backbone, "head": {"logits": {"kernel": np.zeros(1)}}}
    stats = {"backbone": {"stem_norm": {"mean": np.zeros(1)}, "last_norm": {"mean": np.zeros(1)}}}
    for freeze, more in (("stages:1", set()), ("stages:1+batchnorm", {"last_norm"})):
        labels = freeze_labels(params, stats, freeze)
        frozen = {
            name
            for name, module in labels["backbone"].items()
            if set(module.values()) == {"freeze"}
        }
        assert frozen == {"stem", "stem_norm", "stage_0_block_0"} | more
        assert labels["head"]["logits"]["kernel"] == "train"


def test_only_kernels_decay():
    assert sizes(decay_mask(PARAMS), True) == {2, 11}


def run(options, gradients):
    """The parameters after each of the gradients, and the last optimiser state."""
    tx = optimizer(options, 10, PARAMS, STATS)
    update = jax.jit(tx.update)
    state, params, history = tx.init(PARAMS), PARAMS, []
    for gradient in gradients:
        with jax.numpy_dtype_promotion("standard"):
            updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        history.append(params)
    return history, state


def scaled(factor, frozen=None):
    """Gradients of `factor` everywhere; of `frozen` in the backbone, where given."""
    tree = jax.tree.map(lambda leaf: factor * jnp.arange(1.0, leaf.size + 1), PARAMS)
    if frozen is not None:
        tree["backbone"] = jax.tree.map(
            lambda leaf: jnp.full_like(leaf, frozen), PARAMS["backbone"]
        )
    return tree


@pytest.mark.parametrize(("freeze", "frozen"), [("batchnorm", BATCH_NORMS), ("backbone", BACKBONE)])
def test_frozen_leaves_stay_and_have_no_moments(freeze, frozen):
    history, state = run(phase(freeze=freeze), [scaled(1.0), scaled(-0.5)])
    unchanged = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), PARAMS, history[-1])
    assert sizes(unchanged, True) == frozen
    moments = {leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim}
    assert moments == set(range(2, 13)) - frozen


def test_the_first_moment_may_be_bfloat16():
    gradients = [scaled(1.0), scaled(-0.5), scaled(2.0)]
    expected, _ = run(phase(freeze="backbone"), gradients)
    found, state = run(phase(freeze="backbone", mu_dtype="bfloat16"), gradients)
    kinds = {}
    for leaf in jax.tree.leaves(state):
        if leaf.ndim:
            kinds.setdefault(leaf.dtype.name, set()).add(leaf.size)
    trained = set(range(2, 13)) - BACKBONE
    assert kinds == {"bfloat16": trained, "float32": trained}
    for before, one, other in zip(
        *map(jax.tree.leaves, (PARAMS, found[-1], expected[-1])), strict=True
    ):
        np.testing.assert_allclose(one - before, other - before, rtol=0.02, atol=1e-7)
    assert np.any(found[-1]["head"]["logits"]["kernel"] != 1)


def test_without_gradients_kernels_alone_shrink():
    options = phase(freeze="none", learning_rate=0.1, weight_decay=0.5)
    history, _ = run(options, [scaled(0.0)])
    unchanged = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), PARAMS, history[0])
    assert sizes(unchanged, False) == {2, 11}
    np.testing.assert_allclose(history[0]["head"]["logits"]["kernel"], 1 - 0.1 * 0.5, rtol=1e-6)


def test_the_norm_of_the_trained_gradients_is_clipped():
    # Adam forgets a lasting scale, so the second gradient is small beside the first.
    big, small = scaled(50.0, frozen=1e6), scaled(1e-3, frozen=0.0)
    norm = np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(big["head"])))
    clipped, _ = run(phase(freeze="backbone", clip_norm=1.0), [big, small])
    free = phase(freeze="backbone", clip_norm=0.0)
    expected, _ = run(free, [scaled(50.0 / norm), small])
    unclipped, _ = run(free, [big, small])
    for a, b in zip(jax.tree.leaves(clipped), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    kernels = [h[-1]["head"]["logits"]["kernel"] for h in (clipped, unclipped)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-7


@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_wsd_is_optaxs_pieces_joined(alpha):
    pieces = optax.join_schedules(
        [
            optax.linear_schedule(0.0, 0.3, 10),
            optax.constant_schedule(0.3),
            optax.linear_schedule(0.3, 0.3 * alpha, 20),
        ],
        [10, 80],
    )
    with jax.numpy_dtype_promotion("standard"):
        expected = rates(pieces, 110)
    found = rates(wsd(0.3, 100, warmup_steps=10, decay_steps=20, alpha=alpha), 110)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_the_schedules_by_name():
    def of(**changes):
        options = config_lib.defaults().phases.finetune
        options.epochs, options.learning_rate = 10, 0.2
        options.schedule.update(warmup=1.0, first_cycle=2.0, t_mul=1.0, m_mul=0.5, **changes)
        return rates(phase_schedule(options, 5), 50)

    # Restarts are SGDR's alone; everything else has the same warm-up.
    np.testing.assert_array_equal(
        of(name="sgdr"), rates(sgdr(0.2, 10, warmup_steps=5, t_mul=1.0, m_mul=0.5), 50)
    )
    np.testing.assert_array_equal(
        of(name="cosine", alpha=0.1), rates(sgdr(0.2, 45, warmup_steps=5, alpha=0.1), 50)
    )
    stable = of(name="wsd", decay=0.4)
    np.testing.assert_array_equal(stable, rates(wsd(0.2, 50, warmup_steps=5, decay_steps=20), 50))
    assert (stable[5:31] == np.float32(0.2)).all()
    assert stable[31] < stable[30]
    constant = of(name="constant")
    np.testing.assert_array_equal(constant[5:], np.full(45, 0.2, np.float32))
    # A decay over all of the phase begins where the warm-up ends.
    whole = of(name="wsd", decay=1.0)
    assert whole.argmax() == 5
    for found in (stable, constant, whole):
        np.testing.assert_allclose(found[:5], 0.04 * np.arange(5), rtol=1e-6)


def kernel_of(history):
    return np.asarray(history[-1]["head"]["logits"]["kernel"], np.float64)


def constant(name, **changes):
    """A phase of the rule alone: no clipping, and a constant rate of 0.1."""
    options = phase(optimizer=name, freeze="none", clip_norm=0.0, learning_rate=0.1, **changes)
    options.schedule.name = "constant"
    return options


GRADIENTS = [scaled(1.0), scaled(-0.3), scaled(0.2), scaled(0.5)]


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_sgd_is_torchs_with_decay_apart(weight_decay):
    torch = pytest.importorskip("torch")
    history, _ = run(constant("sgd", weight_decay=weight_decay), GRADIENTS)
    for path, decays in ((("logits", "kernel"), True), (("logits", "bias"), False)):
        leaf = PARAMS["head"][path[0]][path[1]]
        weights = torch.nn.Parameter(torch.ones(leaf.size, dtype=torch.float64))
        reference = torch.optim.SGD([weights], lr=0.1, momentum=0.9, nesterov=True)
        for gradient in GRADIENTS:
            weights.grad = torch.tensor(np.asarray(gradient["head"][path[0]][path[1]], np.float64))
            before = weights.detach().clone()
            reference.step()
            with torch.no_grad():
                weights -= 0.1 * weight_decay * before * decays
        found = history[-1]["head"][path[0]][path[1]]
        np.testing.assert_allclose(found, weights.detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_lion_is_the_papers_algorithm(weight_decay):
    history, _ = run(constant("lion", weight_decay=weight_decay), GRADIENTS)
    weights, momentum = np.ones(11), np.zeros(11)
    for gradient in GRADIENTS:
        g = np.asarray(gradient["head"]["logits"]["kernel"], np.float64)
        step = np.sign(0.9 * momentum + 0.1 * g)
        momentum = 0.99 * momentum + 0.01 * g
        weights = weights - 0.1 * (step + weight_decay * weights)
    np.testing.assert_allclose(kernel_of(history), weights, rtol=1e-5)


@pytest.mark.parametrize("name", ["lion", "sgd"])
def test_other_rules_keep_one_moment_and_leave_frozen_leaves_alone(name):
    options = constant(name, mu_dtype="bfloat16")
    options.freeze = "backbone"
    history, state = run(options, GRADIENTS)
    unchanged = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), PARAMS, history[-1])
    assert sizes(unchanged, True) == BACKBONE
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert sorted(leaf.size for leaf in moments) == [9, 10, 11, 12]
    assert {leaf.dtype.name for leaf in moments} == {"bfloat16"}


def test_the_default_s_state_is_that_of_adamw_alone():
    tx = optax.adamw(lambda count: 0.1, mu_dtype="float32", mask=decay_mask)
    expected = optax.partition(
        {"train": optax.chain(optax.clip_by_global_norm(1.0), tx), "freeze": optax.set_to_zero()},
        freeze_labels(PARAMS, STATS, "batchnorm"),
    )
    found = optimizer(config_lib.defaults().phases.finetune, 10, PARAMS, STATS)
    structures = [jax.tree.structure(tx.init(PARAMS)) for tx in (expected, found)]
    assert structures[0] == structures[1]


@pytest.fixture(scope="module")
def simple_cnn():
    return models.random_model("simple_cnn", 3)[1]


@pytest.mark.full
@pytest.mark.parametrize("name", ["adamw", "lion", "sgd"])
@pytest.mark.parametrize("freeze", ["none", "batchnorm"])
def test_layer_decay_scales_what_the_rule_would_do(name, freeze, simple_cnn):
    params, stats = simple_cnn["params"], simple_cnn["batch_stats"]
    gradients = jax.tree.map(lambda leaf: leaf + 0.1, params)

    def first_updates(layer_decay):
        options = constant(name, layer_decay=layer_decay, weight_decay=0.5)
        options.freeze = freeze
        tx = optimizer(options, 10, params, stats)
        with jax.numpy_dtype_promotion("standard"):
            return jax.jit(lambda: tx.update(gradients, tx.init(params), params)[0])()

    def check(whole, found, depth):
        np.testing.assert_allclose(found, whole * 0.5 ** (8 - depth), rtol=1e-5)

    found = first_updates(0.5)
    jax.tree.map(check, first_updates(1.0), found, depths(params))
    norm = found["backbone"]["stage_0_conv_0_norm"]["scale"]
    assert bool(np.any(norm)) == (freeze == "none")
    assert np.any(found["backbone"]["stage_0_conv_0"]["kernel"])


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("max_norm", [1.0, 100.0])
def test_clip_to_is_optax_s_clipping(max_norm, given):
    grads = {"a": jnp.arange(4.0), "b": {"c": -jnp.ones((2, 3))}}
    clip, expected = clip_by_precomputed_norm(max_norm), optax.clip_by_global_norm(max_norm)
    extra = {"norm": optax.tree.norm(grads)} if given else {}
    found, _ = clip.update(grads, clip.init(grads), **extra)
    assert_trees_equal(found, expected.update(grads, expected.init(grads))[0])


@pytest.mark.parametrize("max_norm", [1.0, 100.0])
def test_clipping_on_accelerators_differs_by_rounding_only(max_norm):
    grads = {"a": jnp.arange(4.0), "b": {"c": -jnp.ones((2, 3))}}
    norm = optax.tree.norm(grads)
    found = optim._clip_by_product(max_norm, grads, norm)
    expected = optim._clip_by_quotient(max_norm, grads, norm)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)
    if max_norm > norm:
        assert_trees_equal(found, grads)


def test_the_trained_norm_leaves_out_what_is_frozen():
    grads = {"backbone": {"norm": {"scale": jnp.full(4, jnp.nan)}, "conv": {"kernel": jnp.ones(9)}}}
    stats = {"backbone": {"norm": {"mean": jnp.zeros(4)}}}
    assert trainable_grad_norm(grads, stats, "batchnorm") == 3
    assert not jnp.isfinite(trainable_grad_norm(grads, stats, "none"))
    assert trainable_grad_norm(grads, stats, "backbone") == 0


def test_a_gpu_computes_the_norm_of_small_leaves_together(monkeypatch):
    leaves = [jnp.arange(n, dtype=jnp.float32) for n in (3, 5, 7)] + [jnp.ones((2, 20))]
    monkeypatch.setattr(optim, "_SMALL", 20)
    monkeypatch.setattr(optim, "_JOINED", 2)
    np.testing.assert_allclose(optim._norm_of_few(leaves), optax.tree.norm(leaves), rtol=1e-6)

    def reductions(devices, platform):
        monkeypatch.setattr(jax, "device_count", lambda: devices)
        grads = {"head": {f"bias_{i}": leaf for i, leaf in enumerate(leaves)}}
        norm = jax.jit(lambda grads: trainable_grad_norm(grads, {}, "none"))
        text = export.export(norm, platforms=[platform])(grads).mlir_module()
        return text.count("stablehlo.reduce(")

    assert reductions(1, "cuda") == 3
    assert reductions(2, "cuda") == reductions(1, "cpu") == 4


def test_a_rate_scales_the_whole_schedule():
    phase = config_lib.defaults().phases.finetune
    steps = np.arange(0, 300, 7)
    whole, half = (phase_schedule(phase, 10, rate) for rate in (1.0, 0.5))
    np.testing.assert_allclose(
        [half(step) for step in steps], [0.5 * whole(step) for step in steps], rtol=1e-6
    )


def test_the_rate_of_milestones_is_that_of_torch(make_config):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    phase = make_config(
        **{
            "phases.finetune.epochs": 20,
            "phases.finetune.schedule.name": "step",
            "phases.finetune.schedule.warmup": 0.0,
            "phases.finetune.learning_rate": 1e-3,
        }
    ).phases.finetune
    found = rates(phase_schedule(phase, 5), 100)
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=1e-3)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [10, 15], 0.1)
    for epoch in range(20):
        expected = optimizer.param_groups[0]["lr"]
        np.testing.assert_allclose(found[5 * epoch : 5 * epoch + 5], expected, rtol=1e-5)
        optimizer.step()
        scheduler.step()


def test_milestones_come_after_the_warm_up():
    found = rates(milestones(0.5, [6, 8], 0.1, warmup_steps=4), 10)
    expected = [0, 0.125, 0.25, 0.375, 0.5, 0.5, 0.05, 0.05, 0.005, 0.005]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_milestones_do_not_lower_the_rate_below_the_lowest(make_config):
    schedule = {"name": "step", "warmup": 0.0, "alpha": 0.05}
    options = {f"phases.finetune.schedule.{key}": value for key, value in schedule.items()}
    phase = make_config(**{"phases.finetune.epochs": 4, **options}).phases.finetune
    found = rates(phase_schedule(phase, 1), 4) / phase.learning_rate
    np.testing.assert_allclose(found, [1, 1, 0.1, 0.05], rtol=1e-6)


@pytest.mark.parametrize("name", ["sgdr", "cosine", "wsd", "step", "constant"])
def test_epochs_may_be_as_many_as_early_stopping_never_lets_be(make_config, name):
    options = {"phases.finetune.epochs": 10**6, "phases.finetune.schedule.name": name}
    phase = make_config(**options).phases.finetune
    found = phase_schedule(phase, 3000)(jnp.int32(3000))
    np.testing.assert_allclose(found, phase.learning_rate, rtol=1e-5)
