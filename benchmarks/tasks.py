"""The work that is timed."""

from __future__ import annotations

import dataclasses

KINDS = ("train", "epoch", "head", "predict", "predict_d4", "start")
CLASSES = 8


@dataclasses.dataclass(frozen=True)
class Task:
    """One piece of work, the same for every contender.

    Attributes:
      kind: what is timed:
        "train": a step of AdamW on everything.
        "epoch": the same with its share of an epoch: images drawn from a larger set, each under
          a random flip and quarter turn.
        "head": a step on the classifier alone, under a frozen backbone.
        "predict": probabilities of images that lie on the host, as uint8.
        "predict_d4": the same, averaged over the eight symmetries of the square.
        "start": from nothing to the end of the first step of "train", where the same was compiled
          before.
      network: our name of it. All contenders put a linear classifier of `CLASSES` classes on the
        average of the last map (ConvNeXt: its norm); VGG has no dense layers between.
      batch: images a step.
      size: pixels a side.
      dtype: of the computation, "float32" or "bfloat16"; parameters are float32.
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
    """What a plain run times.

    Args:
      platform: "cpu", or "gpu" and "tpu", where batches are larger and computation is bfloat16.
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
