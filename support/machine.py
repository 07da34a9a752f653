"""This machine: its name, and what it computes fastest. No library tells the second: 16 bits are slower on many."""
import os
import time

import tensorflow as tf


def device_name():
    """Return what the training runs on, for the console."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        return tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
    return "CPU (TensorFlow uses a GPU only in WSL2, not on Windows itself)" if os.name == "nt" else "CPU"


def faster_precision():
    """Time a convolution, and return the Keras policy that trains faster here: "float32", or a mixed one of 16 bits.

    CPUs without bfloat16 instructions and GPUs before compute capability 7.0 are slower in 16 bits.
    """
    half = "float16" if tf.config.list_physical_devices("GPU") else "bfloat16"
    seconds = {"float32": [], half: []}
    try:
        for _ in range(50):  # in turns, so that another program slows down both
            for dtype, times in seconds.items():
                images, kernel = tf.ones((64, 16, 16, 64), dtype), tf.ones((3, 3, 64, 64), dtype)
                start = time.perf_counter()
                tf.reduce_sum(tf.nn.conv2d(images, kernel, 1, "SAME")).numpy()  # a GPU is not done before this returns
                times.append(time.perf_counter() - start)
    except tf.errors.OpError:  # oneDNN has no such convolution for this CPU
        return "float32"
    return f"mixed_{half}" if min(seconds[half]) < 0.9 * min(seconds["float32"]) else "float32"
