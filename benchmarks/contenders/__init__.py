"""Those who are timed: modules with `Contender(task, variant)`, whose `run(steps)` takes steps.

`run` returns when the device is done. A module is imported in a process of its own only, so that
none of them shares memory or threads with another.
"""

import argparse
from collections.abc import Sequence

# As `bloodjax.cli.huge_pages` has it for every command of ours.
_HUGE = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
# On a GPU, JAX would leave the others no memory.
_SHARED = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.4"}

# `bloodjax.ops.depthwise_gpu.FORCE`; not imported, so that peers' processes stay free of JAX.
_DEPTHWISE = "BLOODJAX_CUDA_DEPTHWISE"

# PyTorch's users get huge pages by setting the same variable themselves.
_TIMM = {
    "timm": "contiguous",
    "timm_channels_last": "channels_last",
    "timm_compiled": "channels_last,compiled",
}
TIMM = tuple(name + suffix for name in _TIMM for suffix in ("", "_huge_pages"))

# What the command line calls a contender -> (module, its argument, environment). Ours come first.
CONTENDERS: dict[str, tuple[str, str, dict[str, str]]] = {
    "bloodjax": ("ours", "", {**_SHARED, **_HUGE}),
    "bloodjax_small_pages": ("ours", "", _SHARED),
    "bloodjax_shifted": ("ours", "", {**_SHARED, **_HUGE, _DEPTHWISE: "shifted"}),
    "bloodjax_pallas": ("ours", "", {**_SHARED, **_HUGE, _DEPTHWISE: "pallas"}),
    **{
        name + suffix: ("timm_torch", variant, environment)
        for name, variant in _TIMM.items()
        for suffix, environment in (("", {}), ("_huge_pages", _HUGE))
    },
    **{
        "onnxruntime" + suffix: ("onnx_runtime", "", environment)
        for suffix, environment in (("", {}), ("_huge_pages", _HUGE))
    },
    "keras_jax": ("keras_applications", "", {**_SHARED, "KERAS_BACKEND": "jax"}),
    "keras_torch": ("keras_applications", "", {"KERAS_BACKEND": "torch"}),
}
DEFAULT = ("bloodjax", *TIMM)
# Those whose latency is compared; all have huge pages.
ANSWERING = (
    "bloodjax",
    "timm_huge_pages",
    "timm_channels_last_huge_pages",
    "timm_compiled_huge_pages",
    "onnxruntime_huge_pages",
)


def add_flag(parser: argparse.ArgumentParser, default: Sequence[str]) -> None:
    """Adds `--contenders`, names joined by commas, each a key of `CONTENDERS`."""

    def names(text: str) -> list[str]:
        found = text.split(",")
        for name in found:
            if name not in CONTENDERS:
                expected = ", ".join(CONTENDERS)
                raise argparse.ArgumentTypeError(f"{name!r}, expected some of {expected}")
        return found

    parser.add_argument("--contenders", type=names, default=",".join(default))
