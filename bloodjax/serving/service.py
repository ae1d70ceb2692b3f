"""Answers about uploaded images: class, referral, heat map and nearest training cells."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import importlib.metadata
import json
import logging
import pathlib
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import Any

import numpy as np
from jaxtyping import UInt8

from bloodjax.attribution import overlay
from bloodjax.cli import console
from bloodjax.config import read_options
from bloodjax.data import images as images_lib
from bloodjax.errors import UserError
from bloodjax.evaluation import ensemble, multi_label, tables
from bloodjax.evaluation.answers import Answers
from bloodjax.evaluation.classifier import Classifier
from bloodjax.evaluation.ensemble import Ensemble
from bloodjax.serving import neighbours
from bloodjax.serving.limits import Limits, Refused
from bloodjax.serving.neighbours import TrainingCells
from bloodjax.serving.uploads import Upload

VERSION = importlib.metadata.version("bloodjax")
# XLA uses all cores for one computation; the other threads decode the next requests' images.
THREADS = 4
# Images of a request of the page; other sizes of batches are compiled when a request needs them.
_WARM_UP = 16
# Longer side of the images that are sent to the page.
PREVIEW_SIDE = 512
NEAREST = 6
# Where a run has its figures on the cells that it was not trained on.
_METRICS = "evaluate/test/metrics.json"
_FIGURES = ("n", "accuracy", "balanced_accuracy", "f1_macro", "nll", "ece")
_POLL_SECONDS = 0.05
_NO_IMAGES = "The run's training images cannot be read here."

_log = logging.getLogger("bloodjax")


@dataclasses.dataclass(frozen=True)
class Result:
    """The answer about one file.

    Attributes:
      name: Name of the file, as it was sent.
      predicted: The class of the highest probability; null if the file could not be read.
      confidence: Probability of that class.
      refer: Whether a person should look at the image; also true if it could not be read; null if
        the run has no rule when to refer.
      why: Why it is referred: "unsure", "unlike the training cells", both, or "".
      probabilities: Probability of each class.
      set: The classes in the image's conformal set; null if the run has no such sets.
      notes: What reading the file had to decide, such as which of several frames was taken.
      error: Why the file could not be read, or null.
    """

    name: str
    predicted: str | None
    confidence: float | None
    refer: bool | None
    why: str
    probabilities: dict[str, float] | None
    set: list[str] | None
    notes: list[str]
    error: str | None


@dataclasses.dataclass(frozen=True)
class Neighbour:
    """A training cell that is like the image.

    Attributes:
      name: Its name in the run's training data.
      label: Its class.
      similarity: Cosine similarity of the features, at most 1.
      picture: The image as a data URI, or null if the run's data can no longer be read.
    """

    name: str
    label: str
    similarity: float
    picture: str | None


@dataclasses.dataclass(frozen=True)
class Nearest:
    """The training cells that are most like an image.

    Attributes:
      state: "ready", "preparing" or "none".
      note: What there is to say about the state, or "".
      cells: The cells, the most similar first; empty unless the state is "ready".
    """

    state: str
    note: str
    cells: list[Neighbour]


class _Closed(Exception):
    pass


class Service:
    """Answers about encoded images; several threads may ask at once.

    A thread of its own compiles the network and prepares the features of the training cells, and
    pauses while requests are computed.

    Attributes:
      limits: Bounds of a request.
      pool: Threads to compute answers in.
    """

    def __init__(
        self,
        model: Classifier | Ensemble,
        workdirs: Sequence[pathlib.Path],
        limits: Limits,
        *,
        tta: str | None = None,
        neighbours_of: int = 1600,
    ):
        """Describes the classifier; computes nothing yet.

        Args:
          model: The classifier.
          workdirs: Folder of each run.
          limits: Bounds of a request.
          tta: Test-time views, as for `Classifier.predict`.
          neighbours_of: Most training cells to compare images with; 0 compares with none.
        """
        self.limits, self._model, self._tta = limits, model, tta
        self._workdirs, self._neighbours_of = workdirs, neighbours_of
        self._options = read_options(model.config)
        self._cells: TrainingCells | None = None
        self._prepared, self._progress = False, ""
        self._nearest_note = "" if neighbours_of else "Turned off for this server."
        self._busy, self._lock = 0, threading.Lock()
        self._closed = threading.Event()
        self.pool = futures.ThreadPoolExecutor(THREADS, "answer")
        self._thread = threading.Thread(target=self._prepare, name="prepare", daemon=True)
        self._about = self._describe()

    def start(self) -> None:
        """Starts to compile and to prepare the training cells, in another thread."""
        self._thread.start()

    def close(self) -> None:
        """Ends all threads, and waits until they have ended."""
        self._closed.set()
        self.pool.shutdown(cancel_futures=True)
        if self._thread.is_alive():
            self._thread.join()

    def about(self) -> dict[str, Any]:
        """What there is to say about the classifier, as JSON."""
        state = self._nearest_state()
        return self._about | {
            "ready": self._prepared,
            "nearest": {"state": state, "note": self._nearest_note or self._progress},
        }

    def predict(self, uploads: Sequence[Upload]) -> list[Result]:
        """The answer about each file; one that cannot be read gets an answer with an error.

        Raises:
          Refused: The service is closed.
        """
        with self._computing():
            squares, notes, errors = [], {}, {}
            for i, upload in enumerate(uploads):
                if self._closed.is_set():  # large images take a second each
                    raise Refused(503, "the server is stopping")
                try:
                    image, notes[i] = self._decode(upload)
                except ValueError as error:
                    errors[i] = _text(str(error))
                    continue
                squares.append(self._resized(image)[0])
            answers = self._model.answer(np.stack(squares), self._tta) if squares else None
        rows = iter(range(len(squares)))
        return [
            _unread(upload.name, errors[i])
            if i in errors
            else self._result(upload.name, answers, next(rows), notes[i])
            for i, upload in enumerate(uploads)
        ]

    def explain(self, upload: Upload, class_name: str | None) -> bytes:
        """A PNG file of the image with its heat map.

        Args:
          upload: The image.
          class_name: The class whose score is explained; by default the predicted one.

        Raises:
          Refused: The file cannot be read, or there is no such class.
        """
        classes = self._about["classes"]
        if class_name is not None and class_name not in classes:
            raise Refused(422, f"unknown class, expected one of {', '.join(classes)}")
        with self._computing():
            image = self._readable(upload)
            if class_name is None:
                chosen = self._model.answer(self._resized(image), self._tta).predicted
            else:
                chosen = np.array([classes.index(class_name)])
            maps, _ = self._model.explain([image], chosen)  # of what `predict` sees
            small = images_lib.shrink(image, PREVIEW_SIDE)
            shown = np.clip(images_lib.shrink(maps[0], PREVIEW_SIDE), 0, 1)
            return images_lib.encode_png(overlay.overlay(small, shown))

    def preview(self, upload: Upload) -> bytes:
        """A small PNG file of an image, for formats that a browser does not show.

        Raises:
          Refused: The file cannot be read.
        """
        with self._computing():
            return images_lib.encode_png(self._small(upload))

    def nearest(self, upload: Upload) -> Nearest:
        """The training cells that are most like the image.

        Raises:
          Refused: The file cannot be read.
        """
        cells, state = self._cells, self._nearest_state()
        if cells is None:
            return Nearest(state, self._nearest_note or self._progress, [])
        with self._computing():
            features = neighbours.describe(self._model, self._square(upload))[0]
            found = [
                Neighbour(
                    _text(cells.names[i]),
                    self._about["classes"][cells.labels[i]],
                    round(similarity, 4),
                    _data_uri(cells.image(i)),
                )
                for i, similarity in cells.nearest(features, NEAREST)
            ]
        return Nearest(state, self._nearest_note, found)

    def _nearest_state(self) -> str:
        if self._cells is not None:
            return "ready"
        return "none" if self._nearest_note else "preparing"

    def _decode(self, upload: Upload) -> tuple[UInt8[np.ndarray, "height width 3"], list[str]]:
        if upload.error:
            raise ValueError(upload.error)
        if not upload.data:
            raise ValueError("an empty file")
        image, tally = images_lib.decode_whole(upload.data, self._options.bits, self.limits.pixels)
        return image, list(tally.phrases(self._options))

    def _square(self, upload: Upload) -> UInt8[np.ndarray, "1 size size 3"]:
        return self._resized(self._readable(upload))

    def _resized(self, image: UInt8[np.ndarray, "_ _ 3"]) -> UInt8[np.ndarray, "1 size size 3"]:
        return images_lib.resize(image[None], self._model.config.data.image_size, self._model.fit)

    def _small(self, upload: Upload) -> UInt8[np.ndarray, "height width 3"]:
        return images_lib.shrink(self._readable(upload), PREVIEW_SIDE)

    def _readable(self, upload: Upload) -> UInt8[np.ndarray, "height width 3"]:
        try:
            return self._decode(upload)[0]
        except ValueError as error:
            raise Refused(422, _text(str(error))) from None

    def _result(self, name: str, answers: Answers, row: int, notes: list[str]) -> Result:
        classes = self._about["classes"]
        probabilities = np.round(answers.probabilities[row].astype(float), 6).tolist()
        chosen = None if answers.sets is None else np.flatnonzero(answers.sets[row])
        return Result(
            name=name,
            predicted=classes[int(answers.predicted[row])],
            confidence=round(float(answers.confidence[row]), 6),
            refer=bool(answers.refer[row]) if answers.is_judged else None,
            why=answers.why[row],
            probabilities=dict(zip(classes, probabilities, strict=True)),
            set=None if chosen is None else [classes[i] for i in chosen],
            notes=notes,
            error=None,
        )

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        """Has the preparation pause."""
        with self._lock:
            self._busy += 1
        try:
            yield
        finally:
            with self._lock:
                self._busy -= 1

    def _prepare(self) -> None:
        try:
            size = self._model.config.data.image_size
            for several in (1, _WARM_UP):
                self._model.answer(np.zeros((several, size, size, 3), np.uint8), self._tta)
                self._prepared = True
                if self._closed.is_set():
                    return
            self._model.explain(np.zeros((1, size, size, 3), np.uint8), np.zeros(1, int))
            if not self._nearest_note:
                self._cells = neighbours.prepare(
                    self._model, self._workdirs[0], self._neighbours_of, self._go_on
                )
                if self._cells.missing:
                    self._nearest_note = _NO_IMAGES
                    console.log_info(f"nearest cells without pictures: {self._cells.missing}")
        except _Closed:
            return
        except UserError as error:
            # The page may be seen from other machines, so paths are for the terminal only.
            self._nearest_note = _NO_IMAGES
            console.log_info(f"no nearest cells: {error}")
        except Exception:
            self._nearest_note = "An error of the server, which its terminal shows."
            _log.exception("preparing the server")

    def _go_on(self, done: int, of: int) -> None:
        self._progress = f"{done:,} of {of:,} training cells are prepared."
        while self._busy and not self._closed.is_set():
            time.sleep(_POLL_SECONDS)
        if self._closed.is_set():
            raise _Closed

    def _describe(self) -> dict[str, Any]:
        is_ensemble = isinstance(self._model, Ensemble)
        members = self._model.members if is_ensemble else {self._workdirs[0]: self._model}
        referral = self._model.referral
        classes = [_text(name) for name in self._model.classes]
        threshold = None if referral is None else referral.threshold
        figures = {} if is_ensemble else _read_figures(self._workdirs[0] / _METRICS, threshold)
        return {
            "version": VERSION,
            "network": ", ".join(member.config.model.name for member in members.values()),
            "classes": classes,
            "columns": tables.probability_columns(classes),
            "runs": [
                {
                    "name": _text(folder.resolve().name),
                    "network": member.config.model.name,
                    "image_size": member.config.data.image_size,
                    "step": member.step,
                    "calibration": _calibration(member),
                    "weights": {
                        key: member.config.model.source[key] for key in ("licence", "citation")
                    },
                }
                for folder, member in members.items()
            ],
            "views": self._tta or self._model.tta,
            # Each member of an ensemble has its own.
            "calibration": None if is_ensemble else _calibration(self._model),
            "refers_unsure": referral is not None,
            "refers_unlike": any(m.detector is not None for m in members.values()),
            "answers_nothing": referral is not None and referral.answers_nothing,
            "metrics": figures,
            "limits": dataclasses.asdict(self.limits)
            | {"request_bytes": self.limits.request_bytes},
        }


def load(
    workdirs: Sequence[pathlib.Path], limits: Limits, *, tta: str | None, neighbours_of: int
) -> Service:
    """A service of the classifier of a run, or of the ensemble of several; see `Service`.

    Raises:
      UserError: A folder has no run, or `tta` is invalid.
    """
    model = ensemble.load(workdirs)
    multi_label.refuse(model.config, "serve")
    model.check_tta(tta)
    return Service(model, workdirs, limits, tta=tta, neighbours_of=neighbours_of)


def _calibration(model: Classifier) -> dict[str, Any] | None:
    """The calibration of the run's default views, or None if it has none."""
    found = model.calibrations.get("default")
    return None if found is None else found.to_dict()


def _read_figures(path: pathlib.Path, threshold: float | None) -> dict[str, Any]:
    """A few figures of a `metrics.json`; {} if it is missing or damaged.

    The operating point is None if its threshold is not `threshold`, the classifier's own.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
        figures = {key: found[key] for key in _FIGURES if key in found}
        intervals = {k: v for k, v in found.get("ci95", {}).items() if k in _FIGURES}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    point = (found.get("selective") or {}).get("operating_point")
    if point and point.get("threshold") != threshold:  # from before `evaluate --calibrate`
        point = None
    return figures | {"ci95": intervals, "operating_point": point}


def _unread(name: str, error: str) -> Result:
    return Result(name, None, None, True, "", None, None, [], error)


def _data_uri(image: UInt8[np.ndarray, "size size 3"] | None) -> str | None:
    if image is None:
        return None
    return "data:image/png;base64," + base64.b64encode(images_lib.encode_png(image)).decode()


def _text(name: str) -> str:
    r"""`name` with what UTF-8 cannot encode as escapes, such as \udce9."""
    return name.encode("utf-8", "backslashreplace").decode()
