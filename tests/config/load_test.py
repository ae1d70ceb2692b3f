import importlib
import json
import pathlib
import re
import sys

import ml_collections
import pytest

from bloodjax import config as config_lib
from bloodjax.config import validation
from bloodjax.errors import UserError
from bloodjax.pretrained.pretrained_cfg import PretrainedCfg

# `bloodjax.config.load` is the function.
loading = importlib.import_module("bloodjax.config.load")
CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
PHASE_RULES = {
    "epochs": -1,
    "freeze": "head",
    "sizes": "64:0.4,80:0.3,96",
    "cache_features": "maybe",
    "optimizer": "adam",
    "learning_rate": -1.0,
    "layer_decay": 0.0,
    "weight_decay": -0.1,
    "clip_norm": float("inf"),
    "mu_dtype": "float16",
    "schedule.name": "linear",
    "schedule.warmup": -1.0,
    "schedule.first_cycle": -1.0,
    "schedule.t_mul": 0.5,
    "schedule.m_mul": 0.0,
    "schedule.decay": 1.5,
    "schedule.milestones": (0.75, 0.5),
    "schedule.factor": 0.0,
    "schedule.alpha": 1.0,
}
# One value for each rule that has the right type and breaks the rule.
IMPOSSIBLE = {
    "seed": -1,
    "batch_size": 0,
    "accumulate_steps": 0,
    "parallel": "xmap",
    "steps_per_call": 0,
    "dtype": "float16",
    "data.validation": 1.0,
    "data.test": -0.1,
    "data.image_size": 15,
    "data.on_device": "yes",
    "data.clean": "yes",
    "data.bad_images": "drop",
    "data.sampling": "1.5",
    "data.layout": "patient/class",
    "data.bits": "11",
    "data.columns": "label:dx",
    "data.fit": "stretch",
    "data.scale": "auto",
    "data.task": "labels",
    "data.classes": ("a", "a"),
    "model.drop_path": 1.0,
    "model.mean": (0.5, 0.5),
    "model.std": (0.5, 0.5, 0.0),
    "model.head.hidden": (16, 0),
    "model.head.dropout": (0.5, 1.0),
    "model.head.activation": "step",
    "loss.name": "hinge",
    "loss.gamma": -1.0,
    "loss.class_weights": "inverse",
    "loss.effective_beta": 1.0,
    "loss.logit_adjustment": -0.5,
    "loss.label_smoothing": 1.0,
    "loss.consistency": -1.0,
    "distill.weight": 0.0,
    "distill.temperature": 0.0,
    "distill.tta": "d8",
    "ema": 1.0,
    "soup": -1,
    "early_stopping.metric": "recall",
    "early_stopping.patience": 0,
    "early_stopping.set": "test",
    "grace_seconds": -1.0,
    "peer_timeout": 1.0,
    "trackers": ("comet",),
    "tracking.tags": ("a", "a"),
    "tracking.finish_seconds": -1.0,
    "sharding": "both",
    "divergence.skip": -1,
    "divergence.rollbacks": -1,
    "divergence.factor": 1.0,
    "folds": 1,
    "evaluation.tta": "d8",
    "evaluation.tta_average": "medians",
    "evaluation.tta_select": "best",
    "evaluation.bootstrap": 0,
    "evaluation.calibration": "isotonic",
    "evaluation.target_error": 0.0,
    "evaluation.conformal": 1.0,
    "evaluation.rejection": "vim",
    "evaluation.rejection_rate": 0.0,
    "checkpoint_minutes": -1.0,
    **{f"phases.{phase}.{k}": v for phase in config_lib.PHASES for k, v in PHASE_RULES.items()},
}


def leaves(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


DEFAULTS = dict(leaves(config_lib.defaults().to_dict()))
# A text is also a path; whatever is given for a tuple is taken as its only entry.
# `folds` is also text: tests/cross_validation_test.py has its messages.
TYPED = sorted(k for k, v in DEFAULTS.items() if not isinstance(v, (str, tuple)) and k != "folds")


def nested(key, value):
    first, _, rest = key.partition(".")
    return {first: nested(rest, value) if rest else value}


@pytest.fixture
def config_file(tmp_path):
    def write(body):
        path = tmp_path / "configs/mine.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"from bloodjax import settings\n{body}")
        return str(path)

    return write


def test_the_defaults_pass_every_check():
    checked = config_lib.validate(config_lib.defaults())
    assert checked.to_dict() == config_lib.defaults().to_dict()
    assert isinstance(checked, ml_collections.FrozenConfigDict)


def test_reads_a_file_and_then_the_overrides(config_file):
    path = config_file(
        "def get_config():\n c = settings.defaults()\n c.batch_size = 8\n c.seed = 3\n return c\n"
    )
    config = config_lib.load(
        path,
        [
            "seed=4",
            "data.train=cells=1.npz",
            "data.test=0.2",
            "model.head.batch_norm=false",
            "model.head.hidden=(32,)",
            "model.std=1,1,1",
            "data.classes=a,b",
            "phases.head.learning_rate=1",
        ],
    )
    assert (config.batch_size, config.seed) == (8, 4)
    assert (config.data.train, config.data.test) == ("cells=1.npz", "0.2")
    assert config.model.head.batch_norm is False
    assert (tuple(config.model.head.hidden), tuple(config.model.std)) == ((32,), (1, 1, 1))
    assert tuple(config.data.classes) == ("a", "b")
    assert config.phases.head.learning_rate == 1.0
    assert config.data.image_size == config_lib.defaults().data.image_size


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_every_config_at_hand_loads(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    if path.stem == "common":
        with pytest.raises(UserError, match="get_config"):
            config_lib.load(str(path))
    else:
        assert config_lib.load(str(path)).model.name


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
    monkeypatch.setattr(loading.console, "log_info", lines.append)
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


TEXTS = sorted(key for key, value in DEFAULTS.items() if isinstance(value, str))


@pytest.mark.parametrize("text", ["1.10", "2024_01", "1e3", "0x10", "true", "a, b", "(1, 2)"])
def test_every_text_is_taken_as_it_is(text):
    for key in TEXTS:
        assert loading._parse(key, text) == text


@pytest.fixture
def renamed(monkeypatch):
    """Replaces the table of renamed keys; the value lists the lines that were logged."""
    lines = []
    monkeypatch.setattr(loading.console, "log_info", lines.append)
    monkeypatch.setattr(loading, "RENAMED", {"model.arch": "model.name", "n": "seed"})
    loading._log_renamed.cache_clear()
    return lines


def test_an_old_key_is_read_from_a_config_file_and_an_override(config_file, renamed):
    body = "def get_config():\n c = settings.defaults()\n c.model.arch = 'vgg16'\n c.n = 2\n"
    path = config_file(f"{body} return c\n")
    assert config_lib.load(path) == config_lib.validate({"seed": 2, "model": {"name": "vgg16"}})
    assert sorted(renamed) == [
        "config.model.arch was renamed to config.model.name; the old name still works",
        "config.n was renamed to config.seed; the old name still works",
    ]
    assert config_lib.load(path, ["n=3", "model.arch=resnet50"]).seed == 3
    assert config_lib.load(path, ["model.arch=resnet50"]).model.name == "resnet50"
    assert config_lib.load(path, ["seed=4"]).seed == 4
    assert len(renamed) == 2


def test_an_old_key_is_read_from_json(tmp_path, renamed):
    config = config_lib.validate({"seed": 5}).to_dict()
    config["n"] = config.pop("seed")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert config_lib.load_json(tmp_path / "config.json").seed == 5
    assert len(renamed) == 1


def test_the_config_of_an_older_run_is_read(tmp_path):
    source = PretrainedCfg("hf:a/b", "timm", "tf", licence="mit")
    config = config_lib.validate({"model": {"name": "resnet50", "variant": "keras"}})
    config = config_lib.with_source(config, source)
    old = config.to_dict()
    old["model"]["name"] = "resnet_50"
    old["model"]["flavour"] = old["model"].pop("variant")
    for new, before in (("variant", "flavour"), ("naming", "rules")):
        old["model"]["source"][before] = old["model"]["source"].pop(new)
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert config_lib.load_json(tmp_path / "config.json") == config


@pytest.mark.parametrize(
    ("value", "exponent"),
    [("natural", 1), ("sqrt", 0.5), ("balanced", 0), ("0.3", 0.3), (0.3, 0.3), (0, 0), (1.0, 1)],
)
def test_sampling_is_a_name_or_an_exponent(value, exponent):
    config = config_lib.validate(nested("data.sampling", value))
    assert config_lib.sampling_exponent(config) == exponent
    assert config_lib.validate(config) == config


@pytest.mark.parametrize("value", ["often", "1.01", "-0.1", "", "nan", 2])
def test_sampling_that_is_neither(value):
    message = (
        r"config\.data\.sampling is .*, expected natural, sqrt, balanced, or a number from 0 to"
    )
    with pytest.raises(UserError, match=message):
        config_lib.validate(nested("data.sampling", value))


def test_oversample_is_the_old_name_of_balanced_sampling(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(loading.console, "log_info", lines.append)
    loading._log_renamed.cache_clear()
    content = config_lib.defaults().to_dict()
    del content["data"]["sampling"]
    for value, name in ((False, "natural"), (True, "balanced")):
        content["data"]["oversample"] = value
        (tmp_path / "config.json").write_text(json.dumps(content))
        assert config_lib.load_json(tmp_path / "config.json").data.sampling == name
        assert len(lines) == value, "what nobody wrote is not logged"
    assert "config.data.oversample was renamed to config.data.sampling" in lines[0]
    for text in ("True", "true"):
        assert (
            config_lib.load("quickstart", [f"data.oversample={text}"]).data.sampling == "balanced"
        )
    with pytest.raises(
        UserError, match=r"config\.data\.oversample is 'yes', expected False or True"
    ):
        config_lib.load("quickstart", ["data.oversample=yes"])


def test_a_run_of_an_earlier_version_reads_the_upper_8_of_16_bits(tmp_path):
    content = config_lib.defaults().to_dict()
    for key in ("bits", "scale"):
        del content["data"][key]
    (tmp_path / "config.json").write_text(json.dumps(content))
    stored = config_lib.load_json(tmp_path / "config.json")
    assert config_lib.read_options(stored).bits == "16"
    assert config_lib.read_options(config_lib.defaults()).bits == "auto"


def test_the_scale_is_filled_in_by_the_run():
    with pytest.raises(UserError, match=r"data.scale is filled in by the run: expected data.bits"):
        config_lib.load("quickstart", ["data.scale=12"])
    options = config_lib.read_options(config_lib.load("quickstart", ["data.bits=12"]))
    assert options.bits == "12"


def test_a_model_may_be_named_by_an_alias():
    config = config_lib.validate(nested("model.name", "resnet50"))
    for alias in ("resnet_50", "ResNet50"):
        assert not config_lib.differences(config_lib.validate(nested("model.name", alias)), config)


def test_an_old_key_beside_the_new_one(renamed):
    with pytest.raises(UserError, match=r"config\.n was renamed to config\.seed, .*one of them"):
        config_lib.validate({"seed": 1, "n": 2})
    assert config_lib.validate({"seed": 2, "n": 2}).seed == 2


def test_every_renamed_key_has_a_present_name():
    assert set(loading.RENAMED.values()) <= set(DEFAULTS)
    assert not set(loading.RENAMED) & set(DEFAULTS)


def test_every_rule_has_an_impossible_value_here():
    short = {re.sub(r"^phases\.\w+\.", "", key) for key in IMPOSSIBLE}
    assert short == set(validation.RULES)


@pytest.mark.parametrize("key", IMPOSSIBLE)
def test_an_impossible_value(key):
    rule = key.removeprefix("phases.head.").removeprefix("phases.finetune.")
    expected = validation.RULES[rule][1]
    message = rf"^config\.{re.escape(key)} is .*, expected {re.escape(expected)}$"
    with pytest.raises(UserError, match=message):
        config_lib.validate(nested(key, IMPOSSIBLE[key]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"augment": "rotatte"},
            "config.augment: unknown operation 'rotatte': did you mean rotate?",
        ),
        (
            {"augment": "mixup(p=2)"},
            "config.augment: mixup's p is 2, expected a number from 0 to 1",
        ),
        (
            {"augment": "mixup", "batch_size": 9},
            "config.batch_size is 9, expected an even number with mixup, "
            "cutmix, fourier or mixstyle",
        ),
        (
            {
                "augment": "d4|rotate",
                "phases.head.freeze": "backbone",
                "phases.head.cache_features": "always",
            },
            "expected freeze to be backbone, parallel jit, and augment none, flip or d4 then",
        ),
    ],
)
def test_an_impossible_augmentation(changes, message):
    config = config_lib.defaults()
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError) as error:
        config_lib.validate(config)
    assert message in str(error.value)


@pytest.mark.parametrize("key", ["phases.head.learning_rate", "checkpoint_minutes"])
def test_a_number_must_be_one(key):
    with pytest.raises(UserError, match=rf"config\.{key} is nan"):
        config_lib.validate(nested(key, float("nan")))


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


def test_training_needs_an_epoch():
    with pytest.raises(UserError, match="both 0"):
        config_lib.validate({"phases": {"head": {"epochs": 0}, "finetune": {"epochs": 0}}})


def test_an_unknown_key_is_told_the_nearest():
    with pytest.raises(UserError, match=r"config\.batchsize; did you mean config\.batch_size\?"):
        config_lib.validate({"batchsize": 8})
    with pytest.raises(UserError, match=r"unknown config key config\.zzz$"):
        config_lib.validate({"zzz": 1})


def test_an_unknown_model_is_told_the_nearest():
    with pytest.raises(UserError, match=r"'convnext_bass'.*'convnext_base'"):
        config_lib.validate(nested("model.name", "convnext_bass"))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("x = (\n", "line 2: "),
        ("x = 1\n", r"no get_config\(\)"),
        ("def get_config():\n c = settings.defaults()\n c.seed = 'a'\n return c\n", "seed|int"),
        ("def get_config():\n pass\n", "ConfigDict"),
    ],
)
def test_a_wrong_config_file(config_file, body, expected):
    path = config_file(body)
    with pytest.raises(UserError, match=f"--config={re.escape(path)}: .*({expected})"):
        config_lib.load(path)


SMOOTHED = """from bloodjax import config as config_lib
from configs import common
from configs.more.parts import part
import helper_of_config
def get_config():
    config = config_lib.defaults()
    config.loss.label_smoothing = common.SMOOTHING + part() + helper_of_config.ZERO
    return config
"""


@pytest.fixture
def project(tmp_path):
    """Writes a folder with configs/ and a helper beside it; returns the config file."""

    def write(name, smoothing):
        files = {
            "configs/common.py": f"SMOOTHING = {smoothing}\n",
            "configs/more/parts.py": "def part():\n import configs.more.zero as z\n return z.Z\n",
            "configs/more/zero.py": "Z = 0.0\n",
            "helper_of_config.py": "ZERO = 0.0\n",
            "configs/mine.py": SMOOTHED,
        }
        for path, text in files.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_text(text)
        return str(tmp_path / name / "configs/mine.py")

    return write


def test_config_folders_of_one_name_share_no_modules(project):
    first, second = project("a", 0.1), project("b", 0.2)
    before, path = dict(sys.modules), list(sys.path)
    for file, smoothing in ((first, 0.1), (second, 0.2), (first, 0.1)):
        assert config_lib.load(file).loss.label_smoothing == smoothing
    assert (sys.path, sys.modules) == (path, before)
    project("a", 0.3)  # edited within a second, to a file of the same size
    assert config_lib.load(first).loss.label_smoothing == 0.3
    assert not list(pathlib.Path(first).parent.rglob("*.pyc"))


def test_a_config_gets_its_own_module_and_a_program_keeps_its_own(project, tmp_path, monkeypatch):
    (tmp_path / "program/configs").mkdir(parents=True)
    (tmp_path / "program/configs/common.py").write_text("SMOOTHING = 0.4\n")
    monkeypatch.syspath_prepend(tmp_path / "program")
    common = importlib.import_module("configs.common")
    assert config_lib.load(project("a", 0.1)).loss.label_smoothing == 0.1
    assert sys.modules["configs.common"] is importlib.import_module("configs.common") is common
    assert common.SMOOTHING == 0.4
    monkeypatch.delitem(sys.modules, "configs.common")
    monkeypatch.delitem(sys.modules, "configs")


def test_a_failing_config_leaves_no_module_behind(project):
    file = project("a", 0.1)
    pathlib.Path(file).write_text(SMOOTHED + "raise ValueError(1)\n")
    before = dict(sys.modules)
    with pytest.raises(UserError, match="ValueError: 1"):
        config_lib.load(file)
    assert sys.modules == before


def test_a_config_file_with_an_unknown_key(config_file):
    path = config_file("def get_config():\n c = settings.defaults()\n c.epoch = 1\n return c\n")
    with pytest.raises(UserError, match=r"unknown config key config\.epoch"):
        config_lib.load(path)


def test_a_config_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"nope\.py: no such file"):
        config_lib.load(str(tmp_path / "nope.py"))
    (tmp_path / "config.txt").write_text("")
    with pytest.raises(UserError, match=r"config\.txt: expected a Python file"):
        config_lib.load(str(tmp_path / "config.txt"))


def test_json_gives_the_same_config_back(tmp_path):
    config = config_lib.validate(nested("model.head.hidden", (16, 8)) | {"seed": 5})
    (tmp_path / "config.json").write_text(config_lib.to_json(config))
    assert config_lib.load_json(tmp_path / "config.json") == config
    assert json.loads(config_lib.to_json(config))["model"]["head"]["hidden"] == [16, 8]


@pytest.mark.parametrize("text", ["{", "[1]", "null", '{"phases": 3}', '{"seed": -1}', "\xff"])
def test_json_that_is_no_config(text, tmp_path):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"config\.json: .*(expected|unknown)"):
        config_lib.load_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("def get_config():\n return 1 / 0\n", "line 3: ZeroDivisionError: division by zero"),
        ("import nothing_like_it\n", "line 2: ModuleNotFoundError: No module named"),
        ("\n\nx = nought\n", "line 4: NameError: name 'nought' is not defined"),
        ("a\0b", "null bytes"),
    ],
)
def test_a_config_file_that_fails_is_one_line(config_file, line, expected):
    with pytest.raises(UserError) as raised:
        config_lib.load(str(config_file(line)))
    assert re.fullmatch(rf"--config=.*\.py: .*{re.escape(expected)}.*", str(raised.value))


def test_differences_name_key_and_values():
    old, new = config_lib.defaults(), config_lib.defaults()
    assert config_lib.differences(old, new) == []
    new.phases.head.epochs = 3
    new.augment = "flip"
    assert sorted(config_lib.differences(old, new)) == [
        "augment: 'd4' -> 'flip'",
        "phases.head.epochs: 10 -> 3",
    ]


def test_what_a_run_fills_in_is_not_set_by_hand(config_file):
    path = config_file("def get_config():\n return settings.defaults()\n")
    with pytest.raises(UserError, match=r"config\.model\.source\.mean is filled in by the run"):
        config_lib.load(path, ["model.source.mean=0,0,0"])


def test_what_a_run_filled_in_is_no_difference():
    config = config_lib.validate(config_lib.defaults())
    filled = config_lib.with_source(config, PretrainedCfg("hf:a/b", "timm", "tf", licence="mit"))
    assert (filled.model.source.licence, filled.model.name) == ("mit", config.model.name)
    assert not config_lib.differences(filled, config)
    assert config_lib.differences(filled, config_lib.validate({"seed": 1})) == ["seed: 0 -> 1"]


def test_whether_to_profile_may_change_as_a_run_goes_on():
    stored, asked = (
        config_lib.validate({"seed": 1}),
        config_lib.validate({"seed": 1, "profile": True}),
    )
    assert not config_lib.differences(stored, asked)
    assert config_lib.resumed(stored, asked) == asked
    filled = config_lib.with_source(stored, PretrainedCfg("hf:a/b", "timm", "tf", licence="mit"))
    assert config_lib.resumed(filled, asked).model.source.licence == "mit"


def test_images_too_small_for_the_network_are_named(make_config):
    make_config(**{"model.name": "inception_v3", "data.image_size": 75})
    message = r"config\.data\.image_size is 74, expected at least 75 for inception_v3"
    with pytest.raises(UserError, match=message):
        make_config(**{"model.name": "inception_v3", "data.image_size": 74})


def test_values_are_set_without_a_change_of_the_rest(make_config):
    config = make_config()
    rate = "phases.finetune.learning_rate"
    changed = config_lib.with_values(config, {rate: 0.5, "model.head.hidden": (8,)})
    assert sorted(config_lib.differences(config, changed)) == [
        "model.head.hidden: (16,) -> (8,)",
        f"{rate}: {config.phases.finetune.learning_rate} -> 0.5",
    ]
    with pytest.raises(UserError, match=r"config\.batch_size is 0, expected"):
        config_lib.with_values(config, {"batch_size": 0})


def test_a_resumed_run_may_leave_its_task_to_be_found():
    asked = config_lib.validate({})
    filled = config_lib.with_values(asked, {"data.task": "multi-label"})
    assert not config_lib.differences(filled, asked)
    assert config_lib.resumed(filled, asked).data.task == "multi-label"
    other = config_lib.validate(nested("data.task", "multi-class"))
    assert config_lib.differences(filled, other) == ["data.task: 'multi-label' -> 'multi-class'"]
