"""Feeds bloodjax damaged files; each must give a result, or one line that names the file.

python -m benchmarks.fuzz [--mutations=2000] [--seed=0] [--workers=2] [--out=benchmarks/results]
                          [--keep=DIR]

npz, zip, image, ArrayRecord, config and weights files, in turns, each changed as `mutations`
says, are read in worker processes by what the commands read them with, to the last image or
tensor. It is a fault where

- anything is raised but a `UserError` of one line that names what was read;
- the process ends, or takes longer than 60 s, or more than 2 GB of memory;
- a file appears outside, a program or a connection is started, or a pickle is let call something.

`--keep` takes the files of each fault. The results go to DEVICE/fuzz_DATE.json under `--out`; the
status is 1 if there was a fault.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import pathlib
import random
import select
import subprocess
import sys
import tempfile
import time
from concurrent import futures
from typing import Any

from benchmarks import mutations, record, samples

SECONDS = 60.0
BYTES = 2_000_000_000
_START = 300.0  # for a worker to import what it needs, on a busy machine


def main() -> int:
    """Runs the command line; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mutations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmarks/results"))
    parser.add_argument("--keep", type=pathlib.Path)
    args = parser.parse_args()
    found = fuzz(args.mutations, args.seed, args.workers, args.keep)
    for fault in found["faults"]:
        print(json.dumps(fault))
    print({name: value for name, value in found.items() if name != "faults"})
    print(record.write(args.out, record.device_name("cpu", ""), found, "fuzz_"))
    return bool(found["faults"])


def fuzz(
    count: int, seed: int, workers: int = 1, keep: pathlib.Path | None = None
) -> dict[str, Any]:
    """Reads so many damaged samples; what came of them.

    Args:
      count: how many, in all.
      seed: the same seed and count give the same files, as long as the libraries write the same.
      workers: processes that read at a time.
      keep: a folder for the samples that made a fault.
    """
    with tempfile.TemporaryDirectory() as name:
        whole = samples.samples(pathlib.Path(name))
    with futures.ThreadPoolExecutor(workers) as pool:
        shares = [
            pool.submit(_share, whole, range(worker, count, workers), seed, keep)
            for worker in range(workers)
        ]
        answers = [answer for share in shares for answer in share.result()]
    counts = collections.Counter(f"{a['kind']}: {a['outcome']}" for a in answers)
    return {
        "mutations": len(answers),
        "seed": seed,
        "outcomes": dict(sorted(counts.items())),
        "longest_s": round(max(a["seconds"] for a in answers), 2),
        "peak_bytes": max(a.get("peak", 0) for a in answers),
        "faults": [answer for answer in answers if answer["outcome"] == "fault"],
    }


def _share(whole: dict, numbers: range, seed: int, keep: pathlib.Path | None) -> list[dict]:
    """One worker's answers."""
    kinds, answers, worker = sorted(whole), [], None
    try:
        for number in numbers:
            rng = random.Random(f"{seed}/{number}")
            kind = kinds[number % len(kinds)]
            files, done = mutations.mutated(rng.choice(whole[kind]), rng)
            worker = worker or _Worker()
            answer = worker.read(kind, files)
            if answer["outcome"] == "fault" and not answer.pop("alive", True):
                worker.close()
                worker = None
            answers.append({"number": number, "kind": kind, "done": done, **answer})
            if keep and answer["outcome"] == "fault":
                write(keep / str(number), files)
    finally:
        if worker:
            worker.close()
    return answers


def write(folder: pathlib.Path, files: mutations.Sample) -> None:
    """Makes the folder, with these files."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


class _Worker:
    """A process that reads samples, one folder after the other."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory()
        self._root = pathlib.Path(self._folder.name).resolve()
        (self._root / "cwd").mkdir()
        environ = os.environ | {"PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.fuzz_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(self._root / "errors").open("wb"),
            text=True,
            env=environ | {"JAX_PLATFORMS": "cpu", "PYTHONDONTWRITEBYTECODE": "1"},
            cwd=self._root / "cwd",
        )
        if self._answer(_START) is None:
            raise RuntimeError((self._root / "errors").read_text(errors="replace"))

    def read(self, kind: str, files: mutations.Sample) -> dict[str, Any]:
        """What came of reading these files."""
        with tempfile.TemporaryDirectory(dir=self._root, prefix="sample") as folder:
            path = pathlib.Path(folder) / "files"
            write(path, files)
            began, before = time.monotonic(), self._listing()
            self._process.stdin.write(json.dumps([kind, str(path)]) + "\n")
            self._process.stdin.flush()
            answer = self._answer(SECONDS)
            seconds = round(time.monotonic() - began, 3)
            if answer is None:
                what = self._process.poll()
                what = f"no answer in {SECONDS:g} s" if what is None else f"ended with {what}"
                errors = (self._root / "errors").read_text(errors="replace")[-2000:]
                return {
                    "outcome": "fault",
                    "what": [what],
                    "errors": errors,
                    "alive": False,
                    "seconds": seconds,
                }
            what = answer.pop("faults")
            if answer["peak"] > BYTES:
                what.append(f"took {answer['peak']:,} bytes")
            if new := sorted(self._listing() - before):
                what.append(f"wrote {', '.join(new)}")
            if what:
                answer |= {"outcome": "fault", "what": what}
            return {**answer, "seconds": seconds}

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()

    def _answer(self, seconds: float) -> dict[str, Any] | None:
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        line = self._process.stdout.readline() if ready else ""
        return json.loads(line) if line else None

    def _listing(self) -> set[str]:
        return {str(path.relative_to(self._root)) for path in self._root.rglob("*")}


if __name__ == "__main__":
    sys.exit(main())
