"""--fast and --augment: the same network learns faster, and more.
Without it, a good model takes 30 epochs, and 30 epochs give none that is better than good."""
import os
from timeit import timeit

import keras
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

# The dials of --fast. They were chosen on 5,000 training images kept aside, and belong to batches of 64.
fast_epochs = 3
adam_peak = 0.002  # highest learning rate of Adam; longer runs have lower ones
muon_peak = 0.003  # and of Muon
beta_2 = 0.99  # how slowly Adam forgets the size of gradients; its usual 0.999 is for longer runs
warm_up = 0.25  # part of the run in which the learning rates rise
gain = 0.4  # size of the initial values; small ones change direction faster
smoothing = 0.1  # part of each label that is spread over all classes
weight_decay = 0.05  # part of each weight that is taken off a step, times the learning rate


def device_name():
    """Return what the training runs on, for the console."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        return tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
    return "CPU (TensorFlow uses a GPU in WSL2, but not on Windows itself)" if os.name == "nt" else "CPU"


def faster_precision():
    """Time a convolution; return the Keras policy that trains faster here, "float32" or a mixed one of 16 bits.
    CPUs without bfloat16 instructions and GPUs before compute capability 7.0 are slower in 16; no library tells."""
    def seconds(dtype):
        images, kernel = tf.ones((64, 16, 16, 64), dtype), tf.ones((3, 3, 64, 64), dtype)
        return timeit(lambda: tf.reduce_sum(tf.nn.conv2d(images, kernel, 1, "SAME")).numpy(), number=1)  # awaits a GPU

    half = "float16" if tf.config.list_physical_devices("GPU") else "bfloat16"
    try:  # in turns, so that another program slows down both
        long, short = map(min, zip(*[(seconds("float32"), seconds(half)) for _ in range(50)]))
    except tf.errors.OpError:  # oneDNN has no such convolution for this CPU
        return "float32"
    return f"mixed_{half}" if short < 0.9 * long else "float32"


def fast_optimizer(epochs, steps_per_epoch):
    """Return the optimizer for a run of `epochs` epochs, and say what the recipe does."""
    scale = min(1, fast_epochs / epochs) ** 0.5  # longer runs get further with lower rates
    muon, adam, precision = scale * muon_peak, scale * adam_peak, keras.config.dtype_policy().name
    print(f"Fast recipe: {epochs} epoch{'s' * (epochs > 1)} in {precision}, better initial values, smoothed labels;\n"
          f"Muon for the convolutions, Adam for the rest; rates rise to {muon:.2g} and {adam:.2g}, then fall to 0")
    return Muon(OneCycle(adam, epochs * steps_per_epoch), beta_2=beta_2, weight_decay=weight_decay)


def smoothed_crossentropy(labels, probabilities):
    """Return the loss when a part of each label is spread over all classes (https://arxiv.org/abs/1512.00567)."""
    targets = tf.one_hot(tf.cast(tf.reshape(labels, [-1]), tf.int32), probabilities.shape[-1])
    return keras.losses.categorical_crossentropy(targets, probabilities, label_smoothing=smoothing)


class OneCycle(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises to `peak` and falls to 0 at step `steps` (https://arxiv.org/abs/1708.07120)."""

    def __init__(self, peak, steps):
        self.peak, self.steps = peak, steps

    def __call__(self, step):
        done = tf.cast(step, tf.float32) / self.steps
        return self.peak * tf.minimum(done / warm_up, (1 - done) / (1 - warm_up))

    def get_config(self):
        return {"peak": self.peak, "steps": self.steps}


class Muon(keras.optimizers.Adam):
    """Muon (https://kellerjordan.github.io/posts/muon/) for convolutions, which Keras' own does not take; else Adam.
    Muon makes the singular values of each update about equal, so that a kernel learns in all directions at once."""

    muon_share = muon_peak / adam_peak  # of Adam's learning rate

    def update_step(self, gradient, variable, learning_rate):
        if len(variable.shape) != 4:
            return super().update_step(gradient, variable, learning_rate)
        momentum = self._momentums[self._get_variable_index(variable)]
        self.assign(momentum, 0.95 * momentum + gradient)
        matrix = tf.reshape(gradient + 0.95 * momentum, (-1, variable.shape[-1]))  # (3 * 3 * channels, filters)
        rows, columns = matrix.shape
        matrix /= tf.norm(matrix) + 1e-7
        for _ in range(5):  # Newton-Schulz iterations, with the published coefficients
            gram = tf.matmul(matrix, matrix, transpose_a=True)
            matrix = 3.4445 * matrix + matrix @ (2.0315 * gram @ gram - 4.7750 * gram)
        rate = learning_rate * self.muon_share * max(1, rows / columns) ** 0.5
        self.assign_sub(variable, rate * tf.reshape(matrix, variable.shape))


def set_initial_values(model):
    """Make kernels orthogonal (https://arxiv.org/abs/1312.6120) and the first layer whiten; the last stays as it is."""
    first, *others, last = [layer for layer in model.layers if layer.weights]
    for layer in others:
        layer.kernel.assign(keras.initializers.Orthogonal(gain)(layer.kernel.shape))
    first.set_weights(whitening(tfds.load("cifar10", split="train[:1%]", batch_size=-1)["image"], first.filters))


def whitening(images, filters):
    """Return kernel and bias of a 3x3 convolution whose outputs are uncorrelated (https://arxiv.org/abs/2404.00498).
    Its filters are the principal components of patches of the `images`, uint8 (n, 32, 32, 3), each with both signs."""
    patches = tf.image.extract_patches(images, (1, 3, 3, 1), (1, 1, 1, 1), (1, 1, 1, 1), "VALID")
    patches = tf.reshape(patches, (-1, 27)).numpy() / 255
    variances, components = np.linalg.eigh(np.cov(patches.T))  # the smallest comes first
    kernel = gain * (components / np.sqrt(variances + 0.001))[:, -filters // 2:]
    kernel = np.concatenate([kernel, -kernel], axis=1)
    return kernel.reshape(3, 3, 3, filters), -patches.mean(axis=0) @ kernel


def flip_and_shift(batch, seed):
    """Flip half of a batch's images, (n, 32, 32, 3), and shift each by up to 2 pixels, as `seed`, two ints, decides."""
    images, labels = batch
    last = images.shape[1] - 1
    flip, down, right = tf.unstack(tf.random.stateless_uniform((3, tf.shape(images)[0], 1), seed))
    rows = columns = tf.range(last + 1)
    columns = tf.where(flip < 0.5, columns, last - columns)
    rows, columns = (last - abs(last - abs(numbers + tf.cast(5 * shift, tf.int32) - 2))
                     for numbers, shift in ((rows, down), (columns, right)))
    return tf.gather(tf.gather(images, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1), labels
