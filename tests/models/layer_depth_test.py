import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict

from bloodjax import models
from bloodjax.models.layer_depth import depths, stages

# The smallest network of each family -> number of blocks.
NETWORKS = {
    "convnext_atto": 12,
    "convnextv2_atto": 12,
    "densenet121": 58,
    "efficientnet_b0": 16,
    "efficientnetv2_s": 40,
    "inception_v3": 11,
    "mobilenetv1_025": 13,
    "resnet18": 8,
    "resnet50": 16,
    "simple_cnn": 7,
    "vgg11": 8,
    "vgg11_bn": 8,
}


def traced(name, **options):
    """Returns the shapes of the parameters, and the modules' paths in the order of their calls."""
    model, called = models.linear(name, 3, **options), []

    def record(function, arguments, keywords, context):
        called.append(context.module.path)
        return function(*arguments, **keywords)

    with nn.intercept_methods(record):
        variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 96, 96, 3)))
    return variables["params"], called


@pytest.mark.full
@pytest.mark.parametrize(("name", "blocks"), NETWORKS.items())
def test_depth_grows_from_the_input_to_the_head(name, blocks):
    params, called = traced(name)
    found = {}
    for path, depth in flatten_dict(depths(params)).items():
        assert found.setdefault(path[:-1], depth) == depth
    in_order = [found[path] for path in dict.fromkeys(called) if path in found]
    assert len(in_order) == len(found)
    assert in_order == sorted(in_order)
    assert set(in_order) - {0} == set(range(1, blocks + 2))
    assert found["head", "logits"] == blocks + 1
    first = next(path for path in called if path in found)
    assert found[first] == (0 if first[1].startswith("stem") else 1)
    assert name in ("simple_cnn", "vgg11", "vgg11_bn") or 0 in in_order


def test_layers_after_the_last_block_count_as_the_head():
    params, _ = traced("vgg11", top=True)
    found = depths(params)
    assert found["backbone"]["top_0"]["kernel"] == found["head"]["logits"]["kernel"] == 9
    params, _ = traced("efficientnet_b0")
    assert depths(params)["backbone"]["last"]["kernel"] == 17


def test_an_unknown_module_is_an_error():
    params = {"backbone": {"attention": {"kernel": 0}}, "head": {"logits": {"kernel": 0}}}
    with pytest.raises(ValueError, match="backbone/attention/kernel: unknown module"):
        depths(params)


@pytest.mark.slow
@pytest.mark.parametrize("name", models.list_models())
def test_every_module_of_every_network_has_a_depth(name):
    params, _ = traced(name)
    found = set(jax.tree.leaves(depths(params)))
    assert found | {0} == set(range(max(found) + 1))


@pytest.mark.parametrize(
    ("name", "stage_of"),
    [
        ("resnet18", {"stem_norm": -1, "stage_2_block_1": 2}),
        ("densenet121", {"stem": -1, "transition_0": 1, "norm": 4}),
        ("inception_v3", {"stem_4a": -1, "mixed_5b": 2, "mixed_7c": 4}),
        ("simple_cnn", {"stage_3_conv_1": 3}),
    ],
)
def test_stages_are_those_that_the_backbone_ends(name, stage_of):
    found = stages(traced(name)[0])
    for module, stage in stage_of.items():
        assert set(jax.tree.leaves(found["backbone"][module])) == {stage}
    assert found["head"]["logits"]["kernel"] == models.architecture(name).stages
