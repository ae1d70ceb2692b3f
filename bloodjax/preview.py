"""Renders a sheet of augmented training images.

python -m bloodjax.preview --config=NAME_OR_FILE [--config.key=value ...] --out=FILE.png

Each class has one row: an unmodified image of the training source, then the same image as
consecutive training steps augment it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bloodjax.cli import command

if TYPE_CHECKING:
    import numpy as np

    from bloodjax.config import Config
    from bloodjax.data.batches import Batch

_CONFIG = command.flags.DEFINE_string(
    "config",
    None,
    "NAME: Recipe (bloodjax configs lists them), or a Python file with get_config().",
)
command.flags.DEFINE_string("out", None, "FILE.png: Image to write.")
_COLUMNS = command.flags.DEFINE_integer(
    "columns", 9, "N: Augmented images per row.", lower_bound=1, upper_bound=32
)

# Shares of a mixed label below this one are not printed.
_SMALLEST_SHARE = 0.005


def main(overrides: list[str]) -> None:
    """Runs the command."""
    from bloodjax import config as config_lib
    from bloodjax.cli import console
    from bloodjax.errors import UserError
    from bloodjax.io import files

    out = command.local_path("out")
    if out.suffix != ".png":
        raise UserError(f"--out={out}: expected a name that ends in .png")
    files.check_file(out)
    config = config_lib.load(_CONFIG.value, overrides)
    sheet = render_sheet(config, _COLUMNS.value)
    files.make_folder(out.parent)
    files.atomic_write(out, sheet)
    console.log_info(f"written to {out}")


def render_sheet(config: Config, columns: int) -> bytes:
    """Renders the sheet as a PNG file.

    Args:
      config: the run's config. Its training source is read without an audit.
      columns: number of training steps to show.

    Raises:
      UserError: the source cannot be read.
    """
    import numpy as np

    from bloodjax import config as config_lib
    from bloodjax.data import sources
    from bloodjax.data.dataset import label_texts
    from bloodjax.report import image_sheet

    data = sources.load(
        config.data.train,
        config.data.image_size,
        options=config_lib.read_options(config),
        class_names=config.data.classes,
        seed=config.seed,
    )
    classes = range(len(data.classes))
    strata = data.strata
    shown = [int(np.flatnonzero(strata == c)[0]) for c in classes if c in strata]
    images, labels = data.images[shown], data.labels[shown]
    texts = label_texts(labels, data.classes)
    steps = [_augmented(config, step, images, labels, len(classes)) for step in range(columns)]
    rows, titles = [], []
    for i in range(len(shown)):
        rows.append([images[i], *(_to_uint8(batch.image[i]) for batch in steps)])
        targets = (np.asarray(batch.targets[i]) for batch in steps)
        titles.append([texts[i], *(_title(t, data.classes) for t in targets)])
    return image_sheet.render(rows, titles)


def _augmented(config: Config, step: int, images, labels, classes: int) -> Batch:
    """The batch of these images that training step `step` would compute its gradient on."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from bloodjax.config import augmentation
    from bloodjax.data.batches import Batch
    from bloodjax.training.objectives import MULTI_CLASS, MULTI_LABEL
    from bloodjax.training.step_input import prepare_batch

    # Mixing needs an even number of images.
    padding = [(0, len(images) % 2)]
    images = np.pad(images, padding + [(0, 0)] * 3, mode="edge")
    labels = np.pad(labels, padding + [(0, 0)] * (labels.ndim - 1), mode="edge")
    batch = Batch(jnp.asarray(images), jnp.asarray(labels), jnp.ones(len(labels), bool))
    key = jax.random.fold_in(jax.random.key(config.seed), step)
    objective = MULTI_LABEL if labels.ndim == 2 else MULTI_CLASS
    prepare = jax.jit(prepare_batch, static_argnums=0, static_argnames=("classes", "objective"))
    return prepare(augmentation(config), key, batch, classes=classes, objective=objective)


def _to_uint8(image) -> np.ndarray:
    import numpy as np

    return np.round(np.asarray(image)).astype(np.uint8)


def _title(targets: np.ndarray, classes: tuple[str, ...]) -> str:
    """Each class of a mixed label with its share, largest first; empty for a single class."""
    order = sorted(range(len(classes)), key=lambda c: -targets[c])
    mixed = [c for c in order if targets[c] > _SMALLEST_SHARE]
    if len(mixed) == 1:
        return ""
    return "\n".join(f"{targets[c]:.2f} {classes[c]}" for c in mixed)


if __name__ == "__main__":
    command.run(
        main,
        name="preview",
        required=("config", "out"),
        takes_config=True,
        example="--config=recipes/robust --config.data.train=cells.zip --out=preview.png",
    )
