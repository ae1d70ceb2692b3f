import numpy as np
import pytest

from bloodjax.errors import UserError
from bloodjax.pretrained.merge import flatten, merge
from bloodjax.pretrained.name_maps import TRANSFORMS, Rule, batch_norm, kernel

TABLE = (
    *kernel("conv", "backbone/conv"),
    *batch_norm("bn", "backbone/norm"),
    *kernel("fc", "head/logits", "dense"),
    Rule("aux.*", None),
)
VARIABLES = {
    "params": {
        "backbone": {
            "conv": {"kernel": np.zeros((3, 3, 2, 4), np.float32)},
            "norm": {"scale": np.zeros(4, np.float32), "bias": np.zeros(4, np.float32)},
        },
        "head": {
            "logits": {"kernel": np.zeros((4, 5), np.float32), "bias": np.zeros(5, np.float32)}
        },
    },
    "batch_stats": {
        "backbone": {"norm": {"mean": np.zeros(4, np.float32), "var": np.zeros(4, np.float32)}}
    },
}


@pytest.fixture
def tensors():
    draw = np.random.default_rng(0).normal
    shapes = {"conv.weight": (4, 2, 3, 3), "fc.weight": (5, 4), "fc.bias": (5,), "aux.weight": (1,)}
    shapes |= {f"bn.{n}": (4,) for n in ("weight", "bias", "running_mean", "running_var")}
    return {name: draw(size=shape) for name, shape in shapes.items()}


def test_every_tensor_lands_in_its_place_as_float32(tensors):
    merged = flatten(merge(tensors, TABLE, VARIABLES, location="file"))
    assert merged["params/backbone/conv/kernel"][0, 1, 1, 3] == np.float32(
        tensors["conv.weight"][3, 1, 0, 1]
    )
    np.testing.assert_array_equal(
        merged["params/head/logits/kernel"], tensors["fc.weight"].T.astype(np.float32)
    )
    np.testing.assert_array_equal(
        merged["batch_stats/backbone/norm/var"], tensors["bn.running_var"].astype(np.float32)
    )
    assert {value.dtype for value in merged.values()} == {np.dtype("float32")}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(tensors, value):
    tensors["bn.running_var"][2] = value
    with pytest.raises(UserError, match=r"weights: 1 not finite \(bn.running_var\)$"):
        merge(tensors, TABLE, VARIABLES, location="file")


@pytest.mark.parametrize(
    ("transform", "shape"),
    [
        ("depthwise", (8, 2, 3, 3)),
        ("keras_depthwise", (3, 3, 8, 2)),
        ("keras_grouped", (3, 3, 2, 8)),
        ("keras_conv_as_dense", (2, 1, 8, 8)),
    ],
)
def test_an_axis_that_is_dropped_has_one_entry(transform, shape):
    with pytest.raises(ValueError, match="size not equal to one"):
        TRANSFORMS[transform](np.zeros(shape))


def test_all_differences_are_listed_in_one_line(tensors):
    del tensors["conv.weight"]
    tensors["extra"] = np.zeros(1)
    tensors["fc.bias"] = np.zeros(6)
    with pytest.raises(UserError) as error:
        merge(tensors, TABLE, VARIABLES, location="file")
    assert str(error.value) == (
        "file: these are not the network's weights: 1 missing (params/backbone/conv/kernel); "
        "1 unexpected (extra); 1 of another shape (fc.bias (6,) for params/head/logits/bias (5,))"
    )


def test_what_is_replaced_needs_no_tensor_and_takes_none(tensors):
    tensors["fc.weight"] = np.zeros((1000, 4))
    del tensors["fc.bias"]
    merged = merge(tensors, TABLE, VARIABLES, location="file", replace=("head",))
    assert (
        merged["params"]["head"]["logits"]["bias"] is VARIABLES["params"]["head"]["logits"]["bias"]
    )


def test_two_tensors_for_one_variable_are_refused(tensors):
    table = (*TABLE, *kernel("other", "head/logits", "dense"))
    tensors["other.weight"] = tensors["fc.weight"]
    with pytest.raises(UserError, match=r"1 unexpected \(other.weight\)"):
        merge(tensors, table, VARIABLES, location="file")
