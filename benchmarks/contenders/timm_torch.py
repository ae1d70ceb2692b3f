"""timm's networks in PyTorch, trained as its users do."""

from __future__ import annotations

import contextlib

import numpy as np
import torch

from benchmarks.tasks import CLASSES, Task

# Batches whose images an epoch draws from.
_EPOCH = 16
# Most images whose views are one batch.
_FEW = 8


def _timm():
    # PyTorch's CPU build lacks torchvision's compiled operators; timm's import needs their names.
    if not torch._C._dispatch_has_kernel("torchvision::nms"):
        _timm.library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            _timm.library.define(
                f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
    import timm

    return timm


def _model(network: str) -> torch.nn.Module:
    timm = _timm()
    if network.startswith("vgg"):
        features = timm.create_model(network, num_classes=0).features
        pool = (torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        return torch.nn.Sequential(features, *pool, torch.nn.Linear(512, CLASSES))
    return timm.create_model(network, num_classes=CLASSES)


class Contender:
    """One task, ready to run."""

    def __init__(self, task: Task, variant: str):
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = _model(task.network).to(self._device)
        layout = torch.channels_last if "channels_last" in variant else torch.contiguous_format
        self._layout, self._kind, self._autocast = layout, task.kind, contextlib.nullcontext()
        if task.dtype == "bfloat16":
            self._autocast = torch.autocast(self._device.type, torch.bfloat16)
        model = model.to(memory_format=layout)
        rng = np.random.default_rng(0)
        whole = _EPOCH * task.batch if task.kind == "epoch" else task.batch
        shape = (whole, task.size, task.size, 3)
        self._images = torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))
        self._batch = task.batch
        self._x = self._normalised(self._images[: task.batch])
        self._y = torch.arange(task.batch, device=self._device) % CLASSES
        if task.kind == "head":
            model.eval().requires_grad_(False)
            last = [m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1]
            last.requires_grad_(True)
        else:
            model.train(task.kind in ("train", "epoch"))
        trained = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)
        self._model = torch.compile(model) if "compiled" in variant else model

    def run(self, steps: int) -> None:
        """Takes steps, and waits for the last."""
        for _ in range(steps):
            if self._kind in ("predict", "predict_d4"):
                self._predict()
            else:
                self._train()
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def _predict(self) -> None:
        with torch.inference_mode(), self._autocast:
            x = self._normalised(self._images)
            views = _all_views(x) if self._kind == "predict_d4" else [x]
            if len(x) <= _FEW:  # All views are one batch.
                views = [torch.cat(views).contiguous(memory_format=self._layout)]
            each = torch.stack([self._model(view).float().softmax(-1) for view in views])
            each.reshape(-1, *x.shape[:1], each.shape[-1]).mean(0).cpu()

    def _train(self) -> None:
        if self._kind == "epoch":
            index = torch.randint(len(self._images), (self._batch,))
            self._x = _random_views(self._normalised(self._images[index]))
            self._x = self._x.contiguous(memory_format=self._layout)
        self._optimizer.zero_grad(set_to_none=True)
        with self._autocast:
            loss = torch.nn.functional.cross_entropy(self._model(self._x), self._y)
        loss.backward()
        self._optimizer.step()

    def _normalised(self, images: torch.Tensor) -> torch.Tensor:
        x = images.to(self._device).permute(0, 3, 1, 2)
        return ((x.float() / 255 - 0.5) / 0.5).contiguous(memory_format=self._layout)


def _all_views(x: torch.Tensor) -> list[torch.Tensor]:
    """Every symmetry of the square, of a batch."""
    both = [x, x.transpose(2, 3)]
    return [view.flip(axes) for view in both for axes in ((), (2,), (3,), (2, 3))]


def _random_views(x: torch.Tensor) -> torch.Tensor:
    """Each image of a batch under one of the eight symmetries of the square."""
    for transform in (lambda x: x.transpose(2, 3), lambda x: x.flip(2), lambda x: x.flip(3)):
        chosen = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
        x = torch.where(chosen, transform(x), x)
    return x


def about() -> dict[str, str]:
    """Versions, and the device."""
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else "cpu"
    return {"torch": torch.__version__, "timm": _timm().__version__, "device": device}
