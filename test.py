"""Test the model that train.py saved, or try it on pictures of your own: python test.py --help"""
import support.start  # first: it prepares the import of TensorFlow

import argparse
import random
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from support import checks, classes, ctrl_c, errors, options, pictures
from support.models import load_model
from support.screen import verbose
from train import load_data, model_name, preprocess_image

# the names of the classes
categories = {
    0: "airplane",
    1: "automobile",
    2: "bird",
    3: "cat",
    4: "deer",
    5: "dog",
    6: "frog",
    7: "horse",
    8: "ship",
    9: "truck",
}


@ctrl_c.ends_the_script
@errors.are_explained
def main():
    args = parse_args()

    # load the model first: if there is none, that is said before any data are downloaded
    model = load_model(args.model)
    checks.check_classes(model, categories)

    # your own pictures instead of the test images
    if args.image:
        pictures.classify(args.model, model, args.image, preprocess_image, categories)
        return

    # load the data
    ds_train, ds_test, info = load_data()
    checks.check_images(model, ds_test)

    # evaluate the model on all 10,000 test images, in 157 steps (the tutorial's 156 leave out at least 16)
    loss, accuracy = model.evaluate(
        ds_test,
        verbose=verbose(),
    )
    print("Test accuracy:", accuracy * 100, "%")

    # take one image of a random batch
    batches = ds_test.shuffle(1000)
    images, labels = next(iter(batches))
    index = random.randrange(len(images))
    sample_image = images[index].numpy()
    sample_label = categories[int(labels[index])]

    # predict its label
    prediction = model.predict(sample_image[np.newaxis], verbose=0)[0]
    predicted_label = categories[int(np.argmax(prediction))]
    print("Predicted label:", predicted_label)
    print("True label:", sample_label)

    # show it
    plt.figure(figsize=(4, 4.4))
    plt.axis("off")
    plt.imshow(sample_image, cmap="gray")  # used for grey images only
    plt.title(f"Predicted label: {predicted_label}\nTrue label: {sample_label}")
    pictures.save_figure(args.model, "sample")  # for where there is no display
    with pictures.explain_no_window():
        plt.show()

    # show where the model goes wrong
    if args.report:
        pictures.report(args.model, model, ds_test, categories)


def parse_args():
    """Return the options of the command line; exit with code 2 if one is wrong."""
    parser = argparse.ArgumentParser(description="Evaluate a model on CIFAR-10's test images and show one of them.")
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", type=Path, default=Path("results", f"{model_name}.h5"),
        help="model file (default: %(default)s)",
    )
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "--image", nargs="+", metavar="FILE", type=options.picture,
        help="classify the middle square of your own pictures, or those in a folder; each answer is one of the classes",
    )
    either.add_argument("--report", action="store_true", help="also show where the model goes wrong")
    return parser.parse_args(options.given())


if __name__ == "__main__":
    main()
