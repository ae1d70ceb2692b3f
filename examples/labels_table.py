"""From images whose names contain their class to a table of labels, and to a trained run.

python examples/labels_table.py cells/ runs/mine

The folder holds images such as `P07_lymphocyte_0012.png`: patient, class, number.
"""

import csv
import pathlib
import sys

import bloodjax


def write_table(folder: pathlib.Path) -> pathlib.Path:
    """Writes `labels.csv` into the folder, with the columns path, label and patient."""
    table = folder / "labels.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "patient"))
        for path in sorted(folder.glob("*_*_*.png")):
            patient, label, _ = path.stem.split("_", 2)
            writer.writerow((path.name, label, patient))
    return table


def main(folder: str, workdir: str, **changes) -> None:
    """Writes the table, says what it contains, and trains on it."""
    table = write_table(pathlib.Path(folder))
    dataset = bloodjax.load_dataset(table)
    print(f"{len(dataset)} images of {', '.join(dataset.classes)}")
    print(f"{len(set(dataset.groups))} patients; {dataset.reading.details[0]}")

    config = bloodjax.get_config("quickstart")
    config.data.train = str(table)
    config.update_from_flattened_dict(changes)
    metrics = bloodjax.train(config, workdir)["test"]
    print(f"test accuracy {metrics['accuracy']:.3f} of {metrics['n']} images")


if __name__ == "__main__":
    main(*sys.argv[1:])
