"""Reads damaged files; each must either load or fail with one line that names the file.

python -m benchmarks.fuzz [--mutations=2000] [--seed=0] [--workers=2] [--out=benchmarks/results]
                          [--keep=DIR]

npz, zip, image, ArrayRecord, config and weights files are damaged by `mutations` and read in worker
processes by the functions that the commands use, to the last image or tensor. Folders of intact
images and arrays are rearranged, renamed and written as other types by `layouts`, which also makes
odd names of classes, runs and sources. It is a fault if

- anything is raised except a `UserError` of one line that names the file;
- an intact image is neither read nor counted as left out, or a folder and a zip of the same files
  give different images;
- labels of another type part the images into other classes;
- a value of a flag is another than was typed, or a class has no column or no label in a plot;
- the process exits, or takes more than 60 s or more than 2 GB of memory;
- a file is written elsewhere, a program or connection is started, or a pickle calls a function.

The files of each fault are copied to KEEP. The results are written to OUT/DEVICE/fuzz_DATE.json.
The exit status is 1 if there was a fault.
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

from benchmarks import layouts, mutations, record, samples

SECONDS = 60.0
BYTES = 2_000_000_000
# Kind of sample -> what changes it, in place of damage.
_CHANGES = {"folder": layouts.changed, "arrays": layouts.arrays, "names": layouts.texts}
_START = 300.0  # Time limit for the imports of a worker, on a busy machine.


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
    """Reads damaged samples and counts the outcomes.

    Args:
      count: Number of samples.
      seed: Seed of the damage. The same seed, count and library versions give the same files.
      workers: Number of worker processes.
      keep: Folder for the samples with a fault.
    """
    with tempfile.TemporaryDirectory() as name:
        intact = samples.samples(pathlib.Path(name))
    with futures.ThreadPoolExecutor(workers) as pool:
        shares = [
            pool.submit(_share, intact, range(worker, count, workers), seed, keep)
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


def _share(intact: dict, numbers: range, seed: int, keep: pathlib.Path | None) -> list[dict]:
    """Reads the samples of one worker."""
    kinds, answers, worker = sorted(intact), [], None
    try:
        for number in numbers:
            rng = random.Random(f"{seed}/{number}")
            kind = kinds[number % len(kinds)]
            change = _CHANGES.get(kind, mutations.mutated)
            files, done = change(rng.choice(intact[kind]), rng)
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
    """Creates the folder with these files."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


class _Worker:
    """A process that reads samples, one folder after another."""

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
        """Reads the files and returns the outcome."""
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
