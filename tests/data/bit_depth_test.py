import numpy as np
import pytest

from bloodjax.data import bit_depth


def ranges(*arrays):
    return [bit_depth.measure(np.asarray(array)) for array in arrays]


@pytest.mark.parametrize(
    ("largest", "scale"),
    [
        *((0, "8"), (255, "8"), (256, "10"), (1023, "10"), (1024, "12"), (4095, "12")),
        *((4096, "14"), (16383, "14"), (16384, "16"), (65535, "16")),
    ],
)
@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32"])
def test_the_largest_value_of_any_image_decides(largest, scale, dtype):
    dark, bright = np.zeros(3, dtype), np.array([0, largest, 0], dtype)
    assert bit_depth.choose(ranges(dark, bright)) == scale
    (found,) = ranges(bright)
    scaled = bit_depth.to_uint8(bright, found, scale)
    assert scaled.tolist() == [0, largest >> (int(scale) - 8), 0]


def test_floats_of_0_to_1():
    values = np.arange(256) / 255
    (found,) = ranges(values)
    assert bit_depth.choose([found]) == bit_depth.UNIT
    np.testing.assert_array_equal(bit_depth.to_uint8(values, found, "0..1"), np.arange(256))


def test_floats_of_0_and_1_alone_are_black_and_white():
    dark, bright = np.zeros(3, np.float32), np.array([0.0, 1.0], np.float32)
    assert bit_depth.choose(ranges(dark, bright)) == bit_depth.UNIT
    assert bit_depth.to_uint8(bright, *ranges(bright), bit_depth.UNIT).tolist() == [0, 255]
    assert bit_depth.choose(ranges(bright, np.array([0, 1]))) == "8"


def test_a_dark_float_image_has_the_scale_of_the_others():
    dark, bright = np.array([0.0, 0.01, 0.1]), np.array([0.0, 200.5])
    assert bit_depth.choose(ranges(dark, bright)) == "8"
    assert bit_depth.choose(ranges(dark, dark * 9.9)) == bit_depth.UNIT


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ([[0.0, 0.001]], "floats of at most 0.001"),
        ([[0.5, 99.5]], "floats of at most 99.5"),
        ([[0.5, 1.02]], "floats of at most 1.02"),
        ([[0.5, 1.0], [4]], "some images have floats of 0..1 and others have integers"),
    ],
)
def test_values_that_do_not_show_their_scale(arrays, reason):
    with pytest.raises(ValueError, match=reason):
        bit_depth.choose(ranges(*arrays))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([-1, 5], "values of -1..5"),
        ([70_000], "values of 70000..70000"),
        ([float("nan"), 1], "not finite"),
        ([float("inf")], "not finite"),
        ([True], "values of type bool"),
        ([1j], "values of type complex128"),
    ],
)
def test_values_of_no_image(values, reason):
    with pytest.raises(ValueError, match=reason):
        bit_depth.measure(np.array(values))


@pytest.mark.parametrize(
    ("values", "scale"), [([300], "8"), ([0.5], "12"), ([1], "0..1"), ([255.0, 9.5], "0..1")]
)
def test_values_of_another_scale_are_not_squeezed(values, scale):
    values = np.array(values)
    with pytest.raises(ValueError, match=r"of at most .*, expected"):
        bit_depth.to_uint8(values, *ranges(values), scale)


def test_several_sources_have_the_widest_scale():
    assert bit_depth.widest(["8", "", "12", "10"]) == "12"
    assert bit_depth.widest(["", ""]) == ""
    assert bit_depth.widest(["0..1", ""]) == "0..1"
    with pytest.raises(ValueError, match="others have integers"):
        bit_depth.widest(["0..1", "8"])


def test_the_scale_in_words():
    assert bit_depth.describe("12", 4080.0, 1500.0, 80) == (
        "80 images of more than 8 bits read as 12 bits (largest value 4,080)"
    )
    assert bit_depth.describe("16", 65535.0, 4080.0, 80) == (
        "80 images of more than 8 bits read as 16 bits (largest value 65,535, in half of them at "
        "most 4,080)"
    )
    assert bit_depth.describe("0..1", 0.98765, 0.5, 1) == (
        "floats of 0..1 in 1 image (largest value 0.988)"
    )
