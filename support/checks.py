"""Whether a network, the classes and the images belong together. If not, a line says so, and another one the cure.
Without this, a wrong number of classes or another size of images ends in an error of TensorFlow's."""
from pathlib import Path
from textwrap import shorten

import keras
import tensorflow as tf

from support.errors import UserError


def check_network(model, info):
    """Before the training: raise UserError if Keras cannot train or save the network, or if it does not have an output
    for each class of the data set, which `info` describes. (A single output, for yes or no, is left to its loss.)"""
    if not hasattr(model, "output_shape"):
        raise UserError(f"Keras does not know the shapes of your class {type(model).__name__}.\n"
                        "Let create_model() return a Sequential([...]) or a keras.Model(inputs, outputs).")
    if not isinstance(model.input_shape, tuple) or not isinstance(model.output_shape, tuple):
        raise UserError("This network has several inputs or outputs, but train.py and test.py are for one of each.")
    parts_of_loss = getattr(model.loss, "__dict__", {}).values()
    if any(isinstance(part, (keras.Variable, tf.Variable)) for part in parts_of_loss):
        raise UserError("The loss has a variable of its own, which would be neither trained nor saved. "
                        "Make it a constant, or a weight of a layer.")
    names = class_names(info)
    outputs = model.output_shape[-1]
    if names and outputs not in (1, len(names)):
        raise UserError(f"The network has {outputs} outputs, but {info.name} has {len(names)} classes: "
                        f"{shorten(', '.join(names), 200)}.\n"
                        f"Set num_classes = {len(names)} in train.py.")


def class_names(info):
    """Return the names of the classes in the data set that `info` describes, a list, or None if it has none."""
    return getattr(info.features["label"], "names", None) if "label" in info.features else None


def check_classes(model, categories):
    """Raise UserError if a trained model does not have an output for each of the `categories` of test.py."""
    count = len(categories)
    if model.output_shape == (None, count):
        return
    if count == 0:
        raise UserError("test.py has no classes: the folder that `categories` names, with your pictures, is not in\n"
                        f"{Path.cwd()}. Run the command in the folder where it is.")
    if isinstance(model.output_shape, tuple) and len(model.output_shape) == 2 and model.output_shape[1] != 1:
        outputs = model.output_shape[1]
        cure = (f"It was trained for {outputs} classes. Name these in `categories` of test.py, or train another model\n"
                f"for your {count}, with num_classes = {count} in train.py.")
    else:
        cure = 'It should end in Dense(..., activation="softmax") with an output for each of `categories`.'
    raise UserError(f"This model does not classify into the {count} classes of test.py: its output is "
                    f"{model.output_shape}.\n{cure}")


def check_images(model, ds_test):
    """Raise UserError if the model is not for images like those of `ds_test`, batches of images and labels, or if the
    labels are not numbers."""
    shape = ds_test.element_spec[0].shape
    if not shape.is_compatible_with(model.input_shape):
        raise UserError(f"This model is not for these test images: its input is {model.input_shape}, they are {shape}.")
    labels = ds_test.element_spec[1].shape
    if labels.rank > 1 and labels[-1] != 1:  # one-hot, for example, which can be trained with
        raise UserError(f"test.py is for labels that are numbers, but those of load_data() are {labels}.")


def check_pictures(model):
    """Raise UserError if the model is not for pictures, or not for pictures of one size."""
    if len(model.input_shape) != 4 or None in model.input_shape[1:]:
        raise UserError(f"This model is not for pictures of one size: its input is {model.input_shape}.")
