import pathlib

import pytest

from bloodjax import config as config_lib
from bloodjax.config import values
from bloodjax.errors import UserError

from .keys import nested

DEFAULTS = values.flatten(config_lib.defaults())
TEXTS = sorted(key for key, value in DEFAULTS.items() if isinstance(value, str))
# A text is also a path; whatever is given for a tuple is taken as its only entry.
# `folds` is also text: tests/cross_validation_test.py has its messages.
TYPED = sorted(k for k, v in DEFAULTS.items() if not isinstance(v, (str, tuple)) and k != "folds")


@pytest.mark.parametrize("key", TYPED)
def test_a_value_of_the_wrong_type(key):
    expected = type(DEFAULTS[key]).__name__
    with pytest.raises(UserError, match=rf"config\.{key} is 'x', .*type {expected}"):
        config_lib.validate(nested(key, "x"))


def test_true_is_no_number():
    with pytest.raises(UserError, match=r"config\.batch_size is True, .*int"):
        config_lib.validate({"batch_size": True})
    with pytest.raises(UserError, match=r"config\.model\.drop_path is True, .*float"):
        config_lib.validate(nested("model.drop_path", True))


@pytest.mark.parametrize(
    "text", ["2024_01", "12.10", "1.10", "1e3", "0x10", "true", "None", "5", "'a'", "a=b"]
)
def test_an_override_of_a_text_is_taken_as_it_is(config_file, text):
    path = config_file("get_config = settings.defaults\n")
    config = config_lib.load(path, [f"data.train={text}", f"data.validation=./{text}"])
    assert (config.data.train, config.data.validation) == (text, f"./{text}")


def test_an_override_of_a_number_is_a_number(config_file):
    path = config_file("get_config = settings.defaults\n")
    config = config_lib.load(path, ["batch_size=1_0", "ema=1e-3", "profile=TRUE", "ema=0"])
    assert (config.batch_size, config.ema, config.profile) == (10, 0.0, True)
    for override in ("batch_size=1e3", "batch_size=1.0", "batch_size=eight", "batch_size.x=1"):
        with pytest.raises(UserError, match=r"config\.batch_size(\.x| is .*type int)"):
            config_lib.load(path, [override])


@pytest.mark.parametrize(
    "override",
    [
        "seed={[]}",
        "seed={[]: 1}",
        f"seed={'-' * 100_000}1",
        "data.classes=[{[]: 1}]",
        f"ema={'9' * 400}",
        "model.head.hidden=1e999",
        "model.head.hidden=16.0",
    ],
    ids=lambda override: override[:20],
)
def test_an_override_that_no_value_can_be_made_of(config_file, override):
    path = config_file("get_config = settings.defaults\n")
    key = override.partition("=")[0]
    if key == "data.classes":  # a text like any other
        assert config_lib.load(path, [override]).data.classes == ("[{[]: 1}]",)
        return
    with pytest.raises(UserError, match=rf"config\.{key} is .*, expected"):
        config_lib.load(path, [override])


@pytest.mark.parametrize("text", ["5", "12.10", "1e3", "-3"])
def test_a_folder_called_like_a_number_is_a_source(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    for key in ("data.validation", "data.test"):
        with pytest.raises(UserError, match=r"looks like a number as \./NUMBER"):
            config_lib.validate(nested(key, text))
    (tmp_path / text).mkdir()
    config = config_lib.validate(nested("data.validation", text))
    assert config.data.validation == f"./{text}"
    assert config_lib.split_source(config, "validation").spec == f"./{text}"


@pytest.mark.parametrize("text", ["2024_01", "0x10", "True", "None", "nan", "inf", "1_0", "٠"])
def test_what_no_one_writes_as_a_fraction_is_a_source(text):
    config = config_lib.validate(nested("data.test", text))
    assert config.data.test == text
    assert config_lib.split_source(config, "test").spec == text


def test_a_fraction_with_a_folder_of_its_name_is_said(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(values.console, "log_info", lines.append)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "0.25").mkdir()
    config = config_lib.validate(nested("data.test", "0.25"))
    assert config_lib.split_source(config, "test").fraction == 0.25
    assert lines == [
        "config.data.test is the fraction 0.25 of train; the folder or file of that name is ./0.25"
    ]


def test_a_text_that_is_none_is_not_made_one():
    for value in (1.10, 5, True, None):
        with pytest.raises(UserError, match=r"config\.data\.train is .*, expected .* type str"):
            config_lib.validate(nested("data.train", value))
    assert config_lib.validate(nested("data.train", pathlib.Path("1.10"))).data.train == "1.10"
    assert config_lib.validate(nested("data.test", 0.1)).data.test == "0.1"


@pytest.mark.parametrize("text", ["1.10", "2024_01", "1e3", "0x10", "true", "a, b", "(1, 2)"])
def test_every_text_is_taken_as_it_is(text):
    for key in TEXTS:
        assert values.parse_override(key, text) == text


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("0,1", ("0", "1")),
        ("00,01", ("00", "01")),
        ("4_1,4_2", ("4_1", "4_2")),
        ("1.10,1.20", ("1.10", "1.20")),
        ("1e3,0x10,true", ("1e3", "0x10", "true")),
        ("neutrophil, lymphocyte", ("neutrophil", "lymphocyte")),
        (" a b ,\tc ", ("a b", "c")),
        ('"a, b",c', ("a, b", "c")),
        ("('a, b', 'c')", ("a, b", "c")),
        ("7", ("7",)),
        ("", ()),
    ],
)
def test_class_names_stay_as_they_are_written(config_file, text, names):
    path = config_file("get_config = settings.defaults\n")
    config = config_lib.load(path, [f"data.classes={text}"])
    assert tuple(config.data.classes) == names


def test_class_names_are_text():
    with pytest.raises(UserError, match=r"config\.data\.classes is \(0, 1\)"):
        config_lib.validate(nested("data.classes", (0, 1)))
    with pytest.raises(UserError, match="distinct names"):
        config_lib.validate(nested("data.classes", "a,,b"))


def test_an_unknown_key_is_told_the_nearest():
    with pytest.raises(UserError, match=r"config\.batchsize; did you mean config\.batch_size\?"):
        config_lib.validate({"batchsize": 8})
    with pytest.raises(UserError, match=r"unknown config key config\.zzz$"):
        config_lib.validate({"zzz": 1})
