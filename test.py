"""Test the model that train.py saved, or try it on pictures of your own: python test.py --help"""
from train import load_data, model_name, num_classes  # isort: skip (first: it keeps TensorFlow's log off the console)

import argparse
import random
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from support import files, logs, messages, pictures

categories = {
    0: "airplane", 1: "automobile", 2: "bird", 3: "cat", 4: "deer",
    5: "dog", 6: "frog", 7: "horse", 8: "ship", 9: "truck",
}


def main():
    args = parse_args()
    model = files.load_classifier(args.model, num_classes)
    picture = {kind: Path("results", f"{args.model.stem}-{kind}.png") for kind in ("images", "sample", "report")}

    # own pictures instead of CIFAR-10
    if args.image:
        sys.exit(0 if pictures.classify(model, args.image, categories, picture["images"]) else 1)

    # the accuracy, over every test image once
    ds_train, ds_test, info = load_data()
    loss, accuracy = model.evaluate(ds_test)
    print(f"Test accuracy: {accuracy * 100} %")

    # one random test image
    index = random.randrange(info.splits["test"].num_examples)
    image, label = next(ds_test.unbatch().skip(index).as_numpy_iterator())
    probabilities = model(image[None], training=False).numpy()[0]
    predicted_label, true_label = categories[int(probabilities.argmax())], categories[int(label)]
    print(f"Predicted label: {predicted_label}\nTrue label: {true_label}")
    figure, axes = plt.subplots(figsize=(4, 4.4), layout="constrained")
    percent = f"{probabilities.max():.1%}"
    pictures.draw(axes, image, f"Predicted label: {predicted_label} ({percent})\nTrue label: {true_label}")
    pictures.show(figure, picture["sample"])

    # where the model goes wrong
    if args.report:
        images, labels = (np.concatenate(part) for part in zip(*ds_test.as_numpy_iterator()))
        pictures.report(images, labels, model.predict(ds_test), categories, picture["report"])
        log_dir = Path("logs", args.model.stem)
        if log_dir.is_dir() and args.model.resolve().parent == Path("results").resolve():
            logs.log_picture(picture["report"], log_dir / "report")


def parse_args():
    """Return the options of the command line; exit with code 2 if one is wrong."""
    parser = argparse.ArgumentParser(description="Evaluate a model on CIFAR-10's test images and show one of them.")
    parser.add_argument("model", nargs="?", type=Path, default=Path("results", f"{model_name}.h5"), metavar="MODEL",
                        help="model file (default: %(default)s)")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--image", nargs="+", metavar="FILE",
                         help="classify the middle of these pictures instead; each answer is one of the ten classes")
    instead.add_argument("--report", action="store_true", help="show where the model goes wrong, too")
    return parser.parse_args()


if __name__ == "__main__":
    messages.run(main)
