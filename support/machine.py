"""What this computer computes on, and in which precision. Without this, --fast would be slow on some computers."""
import os
from time import monotonic
from timeit import timeit

import tensorflow as tf


def device_name():
    """Return what the training runs on, for the console."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        return tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
    if os.name == "nt":
        return "CPU (TensorFlow uses a GPU in WSL2, but not on Windows itself)"
    return "CPU"


def faster_precision():
    """Return the Keras policy that trains faster here: "float32" or a mixed one of 16 bits."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:  # https://www.tensorflow.org/guide/mixed_precision says which ones are faster
        details = tf.config.experimental.get_device_details(gpus[0])
        modern = details.get("compute_capability", (0, 0)) >= (7, 0)
        return "mixed_float16" if modern else "float32"
    try:  # no library tells whether a CPU is faster in bfloat16; one with AVX512-BF16 was slower
        measured = []
        end = monotonic() + 1
        while not measured or (monotonic() < end and len(measured) < 50):
            measured.append((time_in("float32"), time_in("bfloat16")))  # in turns: other programs may be running
    except tf.errors.OpError:  # oneDNN has no such convolution for this CPU
        return "float32"
    in_32_bits = min(pair[0] for pair in measured)
    in_16_bits = min(pair[1] for pair in measured)
    return "mixed_bfloat16" if in_16_bits < 0.9 * in_32_bits else "float32"


def time_in(dtype):
    """Return how many seconds a convolution takes in this precision."""
    images = tf.ones((64, 16, 16, 64), dtype)
    kernel = tf.ones((3, 3, 64, 64), dtype)
    return timeit(lambda: tf.nn.conv2d(images, kernel, 1, "SAME"), number=1)
