#!/usr/bin/env bash
# All that is to be measured on a machine with an NVIDIA GPU: the operations' tests on the GPU itself,
# the memory of a run beside its plan, the depthwise convolution's forms, and whole networks beside
# timm's.
#
#   benchmarks/gpu.sh [SECONDS]       1320 by default; what has begun may end a little later
#
# Results lie in benchmarks/results/DEVICE, what was printed in benchmarks/results/gpu.log.
set -uo pipefail
cd "$(dirname "$0")/.."
total=${1:-1320}
export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda}
out=${OUT:-benchmarks/results}
mkdir -p "$out"
failed=0

within() { # SECONDS COMMAND...: an interrupt, so that a benchmark writes what it has
  timeout --signal=INT --kill-after=60 "$@" && return
  failed=1
  echo "failed or out of time: ${*:2}"
  return 1
}

depthwise() { # SECONDS FLAG...
  within $(($1 + 60)) python -m benchmarks.depthwise --out="$out" --seconds="$1" "${@:2}"
}

# The device's name for `bloodjax plan`; empty if there is none.
machine() {
  python -c 'import jax
kind = jax.devices()[0].device_kind.lower()
print(next((name for name in ("h200", "h100", "a100") if name in kind), ""))'
}

plan_memory() { # CONFIG FLAG...
  within 180 python -m benchmarks.plan_memory --device="$device" --out="$out" --config="$1" "${@:2}"
}

main() {
  # TF32 would not hold the tests' tolerances.
  JAX_DEFAULT_MATMUL_PRECISION=highest within $((total * 20 / 100)) python -m pytest -q tests/ops

  device=$(machine)
  if [[ $device ]]; then
    plan_memory quickstart
    plan_memory quickstart --config.model.name=convnext_tiny --config.phases.finetune.epochs=1
  fi

  # A kernel that breaks the device ends the first of these; what was timed before is kept.
  # PyTorch comes later: it brings CUDA libraries of its own into the process.
  depthwise $((total * 35 / 100)) --forms=native,shifted,pallas ||
    depthwise $((total * 15 / 100)) --forms=native,shifted
  depthwise $((total * 5 / 100)) --dtypes=bfloat16

  # A file each, so that none is lost when time is up.
  for task in train:convnext_base:64 train:convnext_base:256 train:efficientnet_b0:64 \
    train:resnet50:64 epoch:convnext_base:64 start:convnext_base:64 train:mobilenetv1_100:64; do
    ((SECONDS < total)) || { echo "left out for want of time: $task"; continue; }
    within 300 python -m benchmarks --tasks="$task" --out="$out" --seconds=$((total * 2 / 100)) \
      --contenders=bloodjax,bloodjax_pallas,bloodjax_shifted,timm_channels_last,timm_compiled
  done
  return $failed
}

main 2>&1 | tee "$out/gpu.log"
