"""Timers of the training loop."""

from __future__ import annotations

import dataclasses
import time


class Interval:
    """A repeated interval, such as the time between two checkpoints."""

    def __init__(self, seconds: float):
        """Starts now. An interval of 0 seconds never ends."""
        self._seconds = seconds
        self.restart()

    def restart(self) -> None:
        """Starts the interval again."""
        self._started = time.monotonic()

    def is_over(self) -> bool:
        """Whether more time than the interval has passed since its start."""
        return 0 < self._seconds < time.monotonic() - self._started


@dataclasses.dataclass(frozen=True)
class Throughput:
    """How long steps took, and how fast they were.

    Attributes:
      seconds: Time that the steps took; 0 if none were timed.
      images_per_second: Images that they trained on per second.
    """

    seconds: float = 0.0
    images_per_second: float = 0.0


class Stopwatch:
    """Times the steps of an epoch from now on."""

    def __init__(self, batch_size: int, step: int):
        self._batch_size, self._first_step = batch_size, step
        self._started = time.monotonic()

    def measure(self, step: int) -> Throughput:
        """The throughput until now, when the run is at `step`."""
        seconds = time.monotonic() - self._started
        return Throughput(seconds, (step - self._first_step) * self._batch_size / seconds)
