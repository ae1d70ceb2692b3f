from bloodjax import config as config_lib
from bloodjax.pretrained.pretrained_cfg import PretrainedCfg

from .keys import nested


def test_differences_name_key_and_values():
    old, new = config_lib.defaults(), config_lib.defaults()
    assert config_lib.differences(old, new) == []
    new.phases.head.epochs = 3
    new.augment = "flip"
    assert sorted(config_lib.differences(old, new)) == [
        "augment: 'd4' -> 'flip'",
        "phases.head.epochs: 10 -> 3",
    ]


def test_a_model_may_be_named_by_an_alias():
    config = config_lib.validate(nested("model.name", "resnet50"))
    for alias in ("resnet_50", "ResNet50"):
        assert not config_lib.differences(config_lib.validate(nested("model.name", alias)), config)


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


def test_a_resumed_run_may_leave_its_task_to_be_found():
    asked = config_lib.validate({})
    filled = config_lib.with_values(asked, {"data.task": "multi-label"})
    assert not config_lib.differences(filled, asked)
    assert config_lib.resumed(filled, asked).data.task == "multi-label"
    other = config_lib.validate(nested("data.task", "multi-class"))
    assert config_lib.differences(filled, other) == ["data.task: 'multi-label' -> 'multi-class'"]


def test_trackers_may_change_when_a_run_resumes():
    stored = config_lib.load("quickstart")
    asked = ["trackers=tensorboard,mlflow", "tracking.tags=a,b=c", "tracking.project=p"]
    requested = config_lib.load("quickstart", asked)
    assert config_lib.differences(stored, requested) == []
    resumed = config_lib.resumed(stored, requested)
    assert resumed.trackers == ("tensorboard", "mlflow")
    assert (resumed.tracking.tags, resumed.tracking.project) == (("a", "b=c"), "p")
    assert config_lib.resumed(requested, stored).trackers == ("tensorboard",)
