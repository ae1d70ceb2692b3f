"""The tasks that are timed."""

from __future__ import annotations

import dataclasses

KINDS = ("train", "epoch", "head", "predict", "predict_d4", "start")
CLASSES = 8


@dataclasses.dataclass(frozen=True)
class Task:
    """One task, the same for every contender.

    Attributes:
      kind: What is timed:
        "train": an AdamW step on all parameters.
        "epoch": "train" with a share of an epoch: images from a larger dataset, each with a random
          flip and quarter turn.
        "head": a step on the classifier only; the backbone is frozen.
        "predict": probabilities of uint8 images on the host.
        "predict_d4": "predict", averaged over the eight symmetries of the square.
        "start": from process start to the end of the first step of "train", with a warm
          compilation cache.
      network: Network, by our name. All contenders put a linear classifier of `CLASSES` classes on
        the average of the last feature map (ConvNeXt: its norm), for VGG without dense layers.
      batch: Images per step.
      size: Side of the images in pixels.
      dtype: Compute dtype, "float32" or "bfloat16"; parameters are float32.
    """

    kind: str
    network: str
    batch: int
    size: int = 96
    dtype: str = "float32"

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}, expected one of {', '.join(KINDS)}")

    def __str__(self) -> str:
        return f"{self.kind} {self.network}, batch {self.batch}, {self.size} px, {self.dtype}"


_REPORT = (
    "convnext_tiny",
    "convnext_base",
    "efficientnet_b0",
    "mobilenetv1_100",
    "resnet50",
    "inception_v3",
    "vgg16",
)


def default_tasks(platform: str) -> list[Task]:
    """The tasks of a run without `--tasks`.

    Args:
      platform: "cpu", "gpu" or "tpu". On the latter two, batches are larger, and the compute dtype
        is bfloat16.
    """
    batches, dtype = ((16, 64), "float32") if platform == "cpu" else ((64, 256), "bfloat16")
    trained = [Task("train", name, b, dtype=dtype) for name in _REPORT for b in batches]
    rest = [
        Task(kind, name, batches[-1], dtype=dtype)
        for kind in ("epoch", "head", "predict", "predict_d4")
        for name in ("convnext_tiny", "efficientnet_b0")
    ]
    starts = [Task("start", "convnext_base", batches[0], dtype=dtype)]
    return trained + rest + starts
