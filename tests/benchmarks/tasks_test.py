"""Tests of benchmarks/tasks.py and of the command line's tasks."""

import pytest

from benchmarks.__main__ import parse_task
from benchmarks.tasks import Task, default_tasks
from bloodjax import models


def test_a_task_is_read_and_told():
    task = parse_task("predict:vgg16:8:64", "float32")
    assert task == Task("predict", "vgg16", 8, 64, "float32")
    assert str(task) == "predict vgg16, batch 8, 64 px, float32"
    assert parse_task("train:vgg16:8", "bfloat16").size == 96


@pytest.mark.parametrize("text", ["train", "train:vgg16", "train:vgg16:x", "a:b:c:d:e"])
def test_a_malformed_task_is_named(text):
    with pytest.raises(ValueError, match=f"'{text}': expected KIND:NETWORK:BATCH"):
        parse_task(text, "float32")


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="kind is 'walk', expected one of train"):
        Task("walk", "vgg16", 8)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_the_default_tasks_are_of_networks_that_we_have(platform):
    tasks = default_tasks(platform)
    assert len(set(tasks)) == len(tasks)
    assert {task.network for task in tasks} <= set(models.list_models())
    assert {task.dtype for task in tasks} == {"float32" if platform == "cpu" else "bfloat16"}
