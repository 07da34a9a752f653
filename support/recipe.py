"""--fast and --augment: the same network learns faster, and more.
Without this, the tutorial's accuracy takes 16 to 30 epochs, and 90 % is out of reach."""
import keras
import numpy as np
import tensorflow as tf
from keras.layers import Conv2D, Dense, Dropout

from support import machine

# The settings of --fast. They were chosen on training images that were set aside.
fast_epochs = 2
adam_peak = 0.002  # highest learning rate of Adam, for 3 epochs of batches of 64; longer runs have lower ones
muon_peak = 0.003  # the same for Muon
beta_2 = 0.99  # how slowly Adam forgets the size of gradients; its usual 0.999 is for longer runs
gain = 0.4  # size of the initial values; small ones change direction faster
smoothing = 0.1  # part of each label that is spread over all classes
# These have two values: for runs of up to 10 epochs, and of 30 and more.
weight_decay = 0.2, 0.1  # part of each weight that a step takes off, times the learning rate; short runs have few steps
dropout = 0, 0.3  # part of its rate that the last Dropout layer keeps; the others are off, and in short runs, all are
warm_up = 0.15, 0.25  # part of the run in which the learning rates rise

# The settings of --augment.
farthest = 3  # pixels that an image is shifted
hole = 8  # side of the square, in pixels, that is blanked out


def for_length(setting, epochs):
    """Return the value of a setting that has two, (short, long), in a run of this length. In between, it is a mix."""
    short, long = setting
    share = min(1, max(0, (epochs - 10) / 20))
    return short + share * (long - short)


def dropout_rates(rates, epochs):
    """Return the rates to use instead of `rates`, those of the Dropout layers, in a run of this length."""
    share = for_length(dropout, epochs)
    return [0 for rate in rates[:-1]] + [share * rate for rate in rates[-1:]]


def make_fast(model, load_data, steps_per_epoch, args):
    """Give the new model other initial values, precision, dropout, optimizer and loss for the training, and say so.
    `load_data` is that of train.py, `args` has the options of the command line. Return what restore() needs."""
    epochs = args.epochs
    rates = [layer.rate for layer in dropouts(model)]
    before = {"rates": rates, "optimizer": model.optimizer, "loss": model.loss, "metrics": build_metrics(model)}
    set_rates(model, dropout_rates(rates, epochs))
    make_orthogonal(model)
    ds_train, ds_test, info = load_data(args.batch_size)  # once more, since to read from a stream changes its order
    whitened = whiten_first_layer(model, ds_train)
    precision = machine.faster_precision()
    machine.set_precision(model, precision)

    # small batches need lower rates, and so do long runs: 24 epochs have half the rates of 3
    scale = (args.batch_size / 64) ** 0.5 * (3 / epochs) ** (1 / 3)
    rate = OneCycle(scale * adam_peak, epochs * steps_per_epoch, for_length(warm_up, epochs))
    optimizer = Muon(rate, beta_2=beta_2, weight_decay=for_length(weight_decay, epochs))
    loss = smoothed_crossentropy(from_logits=getattr(model.loss, "from_logits", False))
    model.compile(loss=loss, optimizer=optimizer, metrics=before["metrics"])
    build_metrics(model)  # now, so that `fit` traces the training step once, not twice

    length = "1 epoch" if epochs == 1 else f"{epochs} epochs"
    amount = "less" if any(layer.rate for layer in dropouts(model)) else "no"
    print(f"Fast recipe: {length} in {precision}, {amount} dropout, smoothed labels,\n"
          f"orthogonal initial values{whitened}; Muon for the convolutions, Adam for the rest;\n"
          f"learning rates rise to {scale * muon_peak:.2g} and {scale * adam_peak:.2g}, then fall to 0")
    return before


def restore(model, before):
    """Make the model what it was before make_fast(), with its new weights."""
    set_rates(model, before["rates"])
    machine.set_precision(model, "float32")
    model.compile(loss=before["loss"], optimizer=before["optimizer"], metrics=before["metrics"])


def build_metrics(model):
    """Make the metrics that the model was compiled with, which Keras does only when it trains. Return them, a list."""
    model.compute_metrics(None, np.zeros(1), np.zeros((1, model.output_shape[-1]), "float32"))
    return [metric for group in model.metrics for metric in getattr(group, "metrics", [])]


def dropouts(model):
    """Return the Dropout layers of the model, a list."""
    return [layer for layer in model.layers if isinstance(layer, Dropout)]


def set_rates(model, rates):
    """Give the Dropout layers of the model these rates, a list."""
    for layer, rate in zip(dropouts(model), rates):
        layer.rate = rate


def make_orthogonal(model):
    """Make the kernels orthogonal (https://arxiv.org/abs/1312.6120); that of the last layer stays as it is."""
    layers = [layer for layer in model.layers if isinstance(layer, (Conv2D, Dense))]
    for layer in layers[:-1]:
        layer.kernel.assign(keras.initializers.Orthogonal(gain)(layer.kernel.shape))


def whiten_first_layer(model, ds_train):
    """Let the first layer whiten (https://arxiv.org/abs/2404.00498), if it can. Return what to say of it."""
    first = next(layer for layer in model.layers if layer.weights)
    if not isinstance(first, Conv2D) or first.groups > 1:
        return " (but no whitening: the first layer with weights is not an ordinary convolution)"
    values = first.kernel.shape[2] * first.kernel_size[0] * first.kernel_size[1]
    if first.filters > 2 * values:
        return f" (but no whitening: the first layer has more than {2 * values} filters)"
    height, width = ds_train.element_spec[0].shape[1:3]
    count = 1 + 500_000 // (height * width)  # 489 images of 32x32 pixels
    images, labels = next(iter(ds_train.unbatch().batch(count)))
    images = keras.Model(model.inputs, first.input)(images)  # what other layers, such as Rescaling, make of them first
    kernel, bias = whitening(images, first.kernel_size, first.filters)
    first.kernel.assign(kernel)
    if first.use_bias:
        first.bias.assign(bias)
    return ", a whitening first layer"


def whitening(images, size, filters):
    """Return kernel and bias of a convolution of this kernel size whose outputs are uncorrelated.
    Its filters are the principal components of patches of the `images`, float32 (n, height, width, channels), each with
    both signs."""
    patches = tf.image.extract_patches(images, (1, *size, 1), (1, 1, 1, 1), (1, 1, 1, 1), "VALID")
    patches = tf.reshape(patches, (-1, patches.shape[-1])).numpy()
    variances, components = np.linalg.eigh(np.cov(patches.T))  # the smallest comes first
    half = (filters + 1) // 2
    kernel = gain * (components / np.sqrt(variances + 0.001))[:, -half:]
    kernel = np.concatenate([kernel, -kernel], axis=1)[:, :filters]
    return kernel.reshape(*size, -1, filters), -patches.mean(axis=0) @ kernel


def smoothed_crossentropy(from_logits):
    """Return the loss, a function, when a part of each label is spread over all classes
    (https://arxiv.org/abs/1512.00567). `from_logits` says that the outputs are scores, not probabilities."""
    def loss(labels, outputs):
        targets = tf.one_hot(tf.cast(tf.reshape(labels, [-1]), tf.int32), outputs.shape[-1])
        return keras.losses.categorical_crossentropy(targets, outputs, from_logits, smoothing)
    return loss


class OneCycle(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises to `peak` in the first part, `warm_up`, of all `steps`, and then falls to 0
    (https://arxiv.org/abs/1708.07120)."""

    def __init__(self, peak, steps, warm_up):
        self.peak, self.steps, self.warm_up = peak, steps, warm_up

    def get_config(self):
        return {"peak": self.peak, "steps": self.steps, "warm_up": self.warm_up}

    def __call__(self, step):
        done = tf.cast(step, tf.float32) / self.steps
        return self.peak * tf.minimum(done / self.warm_up, (1 - done) / (1 - self.warm_up))


class Muon(keras.optimizers.Adam):
    """Muon (https://kellerjordan.github.io/posts/muon/) for convolutions, which Keras' own does not support, and Adam.
    Muon makes the singular values of each update about equal, so that a kernel learns in all directions at once."""

    muon_share = muon_peak / adam_peak  # Muon's learning rate as a part of Adam's

    def build(self, variables):
        super().build(variables)
        self.muon_momentums = {}
        for variable in variables:
            if len(variable.shape) == 4 and variable.shape[-1] > 1:  # a depthwise kernel has no matrix
                self.muon_momentums[variable.value.ref()] = self.add_variable_from_reference(variable, "muon_momentum")

    def update_step(self, gradient, variable, learning_rate):
        momentum = self.muon_momentums.get(variable.ref())  # here, it is TensorFlow's variable
        if momentum is None:
            return super().update_step(gradient, variable, learning_rate)
        self.assign(momentum, 0.95 * momentum + gradient)
        matrix = tf.reshape(gradient + 0.95 * momentum, (-1, variable.shape[-1]))  # (3 * 3 * channels, filters)
        rows, columns = matrix.shape
        matrix /= tf.norm(matrix) + 1e-7
        for _ in range(5):  # Newton-Schulz iterations, with the published coefficients
            gram = tf.matmul(matrix, matrix, transpose_a=True)
            matrix = 3.4445 * matrix + matrix @ (2.0315 * gram @ gram - 4.7750 * gram)
        rate = learning_rate * self.muon_share * max(1, rows / columns) ** 0.5
        self.assign_sub(variable, rate * tf.reshape(matrix, variable.shape))


def augment(ds_train, steps_per_epoch):
    """Return the training stream with images that are changed at random, differently in every pass."""
    epochs = tf.data.Dataset.counter().map(lambda step: step // steps_per_epoch)
    seeds = tf.data.Dataset.random().batch(2)
    return tf.data.Dataset.zip(ds_train, epochs, seeds).map(change, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def change(batch, epoch, seed):
    """Flip half of a batch's images, (n, height, width, channels), the others in the next epoch
    (https://arxiv.org/abs/2404.00498). Shift each by a few pixels, and blank out a square in it
    (https://arxiv.org/abs/1708.04552), as `seed`, two ints, decides."""
    images, labels = batch
    count = tf.shape(images)[0]
    height, width = images.shape[1:3]
    numbers = tf.reduce_sum(tf.cast(1000 * images, tf.int64), (1, 2, 3))  # each image keeps its own, odd or even
    flipped = (numbers + epoch) % 2 == 1
    columns = tf.where(flipped[:, None], tf.range(width)[::-1], tf.range(width))
    down, right, top, left = tf.unstack(tf.random.stateless_uniform((4, count, 1), seed))
    shifts = 2 * farthest + 1
    rows = tf.range(height) + tf.cast(shifts * down, tf.int32)
    columns = columns + tf.cast(shifts * right, tf.int32)
    edges = (farthest, farthest)
    images = tf.pad(images, ((0, 0), edges, edges, (0, 0)), "REFLECT")
    images = tf.gather(images, rows, axis=1, batch_dims=1)
    images = tf.gather(images, columns, axis=2, batch_dims=1)
    in_rows = within(tf.range(height), top)[:, :, None, None]
    in_columns = within(tf.range(width), left)[:, None, :, None]
    return tf.where(in_rows & in_columns, 0.45, images), labels  # about the images' mean


def within(pixels, place):
    """Return which of the pixel indices belong to the hole at each place, float (n, 1) in [0, 1]; a hole at the
    edge is smaller."""
    first = tf.cast(place * (len(pixels) + 1), tf.int32) - hole // 2
    return (pixels >= first) & (pixels < first + hole)
