"""From your own images to a report and predictions.

python examples/own_data.py cells.zip runs/mine

The first argument is a .zip or folder of <class>/<image>, or an .npz with `images` and `labels`.
"""

import sys

import bloodjax


def main(data: str, workdir: str, **changes) -> None:
    """Trains on `data`, and prints what the report in `workdir` is about."""
    config = bloodjax.get_config("quickstart")
    config.data.train = data
    config.update_from_flattened_dict(changes)  # such as {"phases.finetune.epochs": 20}
    metrics = bloodjax.train(config, workdir)["test"]

    low, high = metrics["ci95"]["accuracy"]
    print(f"test accuracy {metrics['accuracy']:.3f} ({low:.3f} to {high:.3f})")
    for name, of_class in metrics["per_class"].items():
        print(f"  {name}: recall {of_class['recall']:.3f} of {of_class['support']} images")

    images = bloodjax.load_dataset(data, image_size=config.data.image_size).images[:3]
    classifier = bloodjax.load(workdir)
    for probabilities in classifier.predict(images):
        print(classifier.classes[probabilities.argmax()], f"{probabilities.max():.2f}")
    print(f"report: {workdir}/report/index.html")


if __name__ == "__main__":
    main(*sys.argv[1:])
