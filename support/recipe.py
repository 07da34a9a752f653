"""--fast and --augment: the same network learns faster, and more.
Without this, the tutorial's accuracy takes 16 to 30 epochs, and 90 % is out of reach."""
import random

import keras
import numpy as np
import tensorflow as tf
from keras.layers import Conv2D, Dense, Dropout

from support import machine
from support.messages import UserError, one_line

# The settings of --fast. They were chosen on training images that were set aside.
fast_epochs = 2
adam_peak = 0.002  # highest learning rate of Adam, for 3 epochs of batches of 64; longer runs have lower ones
muon_peak = 0.003  # the same for Muon
widest_block = 128  # columns of a kernel that Muon takes at once
beta_2 = 0.99  # how slowly Adam forgets the size of gradients; its usual 0.999 is for longer runs
gain = 0.4  # size of the initial values; small ones change direction faster
smoothing = 0.2  # part of each label that is spread over all classes
weight_decay = 0.2  # part of each weight that a step takes off, times the learning rate
warm_up = 0.15  # part of the run in which the learning rates rise
dropout = 0.3  # part of its rate that the last Dropout layer keeps in runs of 30 epochs or more; the others are off

# The settings of --augment.
farthest = 3  # pixels that an image is shifted
hole = 8  # side of the square, in pixels, that is blanked out


def dropout_rates(rates, epochs):
    """Return the rates to use instead of `rates`, those of the Dropout layers, in a run of this length. A run of up to
    10 epochs has no dropout; in one of 30 or more, the last rate is multiplied by `dropout`; in between, it grows."""
    share = dropout * min(1, max(0, (epochs - 10) / 20))
    return [0 for rate in rates[:-1]] + [share * rate for rate in rates[-1:]]


def fast_copy(model, load_data, steps_per_epoch, args, precision=None):
    """Give the compiled model other initial values, and return a copy of it for the training, with another precision,
    dropout, optimizer and loss. Print what these are.
    `load_data` is that of train.py, `args` has the options of the command line; `precision` is the Keras policy of the
    run that is resumed. Raises UserError if the model cannot be copied."""
    if not type(model).__module__.startswith("keras."):
        raise UserError(f"--fast trains a copy of the network, but cannot copy your class {type(model).__name__}.\n"
                        "Make it a Sequential(...) or keras.Model(inputs, outputs), or train without --fast.")
    epochs = args.epochs
    layers = inner_layers(model)
    with_kernels = [layer for layer in layers if isinstance(layer, (Conv2D, Dense))][:-1]  # the last one stays as it is
    new = [layer for layer in with_kernels if is_new(layer)]
    make_orthogonal(new)
    ds_train = load_data(args.batch_size)[0]  # once more, since to read from a stream changes its order
    whitened = whiten_first_layer(model, ds_train, new)

    dropouts = [layer for layer in layers if isinstance(layer, Dropout)]
    rates = dropout_rates([layer.rate for layer in dropouts], epochs)
    precision = precision or machine.faster_precision()
    copy = copy_network(model, precision, dict(zip(dropouts, rates)), last=layers[-1])

    # small batches need lower rates, and so do long runs: 24 epochs have half the rates of 3
    scale = (args.batch_size / 64) ** 0.5 * (3 / epochs) ** (1 / 3)
    rate = OneCycle(scale * adam_peak, epochs * steps_per_epoch)
    optimizer = Muon(rate, beta_2=beta_2, weight_decay=weight_decay)
    loss = smoothed_loss(model)
    arguments = model._compile_config.config  # those of compile() in create_model()
    copy.compile(**{**arguments, "optimizer": optimizer, "loss": loss or model.loss})
    if loss:  # make the metrics now, so that `fit` traces the training step once, not twice
        copy.compute_metrics(None, np.zeros(1), np.zeros((1, model.output_shape[-1]), "float32"))

    length = "1 epoch" if epochs == 1 else f"{epochs} epochs"
    amount = "less" if any(rates) else "no"
    labels = "smoothed labels" if loss else "the network's own loss"
    old = len(with_kernels) - len(new)
    but = f" (but not for {old} of {len(with_kernels)} layers: frozen, or not new)" if old else ""
    initial = "orthogonal initial values" if new else "no other initial values"
    kernels = kernels_for_muon(copy.trainable_variables)
    optimizers = "Muon for all kernels but the last, Adam for the rest" if kernels else "Adam"
    print(f"Fast recipe: {length} in {precision}, {amount} dropout, {labels},\n"
          f"{initial}{but}{whitened}; {optimizers};\n"
          f"learning rates rise to {scale * muon_peak:.2g} and {scale * adam_peak:.2g}, then fall to 0")
    return copy


def inner_layers(model):
    """Return the layers of the model, a list; instead of a network inside it, the layers of that."""
    found = []
    for layer in model.layers:
        found += inner_layers(layer) if isinstance(layer, keras.Model) else [layer]
    return found


def copy_network(model, precision, rates, last):
    """Return a copy of the model with the same weights, not compiled. It computes with this Keras policy; its weights
    stay float32, and so does its `last` layer, since 16 bits are too few for the loss. `rates` has the rates of its
    Dropout layers. Raises UserError if a layer cannot be copied."""
    def copy_layer(layer):
        config = layer.get_config()
        if layer in rates:
            config["rate"] = rates[layer]
        if layer is not last and "dtype" in config and layer.dtype_policy.name == "float32":
            config["dtype"] = precision
        try:
            return type(layer).from_config(config)
        except Exception:
            if layer.weights:
                raise
            return layer  # such as a Lambda: it can be in both networks

    network = keras.Model(model.inputs, model.outputs)  # the same layers; clone_model would copy the loss, too
    try:
        copy = keras.models.clone_model(network, clone_function=copy_layer, recursive=True)
    except Exception as error:  # Keras, or a class of the learner's own, raises many kinds
        raise UserError(f"--fast trains a copy of the network, but Keras cannot copy it: {one_line(error)}\n"
                        "A layer of your own needs **kwargs in __init__, and all its arguments in get_config().\n"
                        "Or train without --fast.") from error
    copy.dtype_policy = precision
    copy.set_weights(model.get_weights())
    return copy


def is_new(layer):
    """Return whether the kernel of a layer is to be trained, and is still as its initializer has made it."""
    kernel = layer.kernel
    made = layer.kernel_initializer(kernel.shape, kernel.dtype)  # an initializer makes the same values again
    return kernel.trainable and np.array_equal(kernel, made)


def make_orthogonal(layers):
    """Make the kernels of these layers orthogonal (https://arxiv.org/abs/1312.6120)."""
    for layer in layers:
        layer.kernel.assign(keras.initializers.Orthogonal(gain)(layer.kernel.shape))


def whiten_first_layer(model, ds_train, new):
    """Let the first layer whiten (https://arxiv.org/abs/2404.00498), if it is one of the `new` ones and can do it.
    Return what to print of it."""
    first = next(layer for layer in inner_layers(model) if layer.weights)
    ordinary = isinstance(first, Conv2D) and first.groups == 1 and first.dilation_rate == (1, 1)
    if not ordinary or first not in model.layers:
        return " (but no whitening: the first layer with weights is no ordinary convolution, or in an inner network)"
    values = first.kernel.shape[2] * first.kernel_size[0] * first.kernel_size[1]
    if first.filters > 2 * values or first not in new:
        return f" (but no whitening: the first layer is frozen, not new, or has more than {2 * values} filters)"
    before = keras.Model(model.inputs, first.input)  # layers such as Rescaling and Resizing
    height, width = before.compute_output_shape(ds_train.element_spec[0].shape)[1:3]
    count = 1 + 500_000 // (height * width)  # 489 images of 32x32 pixels
    images = before(next(iter(ds_train.unbatch().batch(count)))[0])
    kernel, bias = whitening(images, first.kernel_size, first.filters)
    first.kernel.assign(kernel)
    if first.use_bias:
        first.bias.assign(bias)
    return ", a whitening first layer"


def whitening(images, size, filters):
    """Return kernel and bias of a convolution of this kernel size whose outputs are uncorrelated.
    Its filters are the principal components of patches of the `images`, (n, height, width, channels), each with both
    signs."""
    images = tf.cast(images, tf.float32)
    patches = tf.image.extract_patches(images, (1, *size, 1), (1, 1, 1, 1), (1, 1, 1, 1), "VALID")
    patches = tf.reshape(patches, (-1, patches.shape[-1])).numpy()
    variances, components = np.linalg.eigh(np.cov(patches.T))  # the smallest comes first
    half = (filters + 1) // 2
    kernel = gain * (components / np.sqrt(variances + 0.001))[:, -half:]
    kernel = np.concatenate([kernel, -kernel], axis=1)[:, :filters]
    return kernel.reshape(*size, -1, filters), -patches.mean(axis=0) @ kernel


def smoothed_loss(model):
    """Return the loss of the model, a function, with a part of each label spread over all classes
    (https://arxiv.org/abs/1512.00567); None if its loss is not sparse categorical crossentropy for several classes."""
    known = ("sparse_categorical_crossentropy", keras.losses.sparse_categorical_crossentropy)
    if type(model.loss) is not keras.losses.SparseCategoricalCrossentropy and model.loss not in known:
        return None
    if len(model.output_shape) != 2 or model.output_shape[-1] == 1:
        return None
    if getattr(model.loss, "ignore_class", None) is not None:
        return None
    from_logits = getattr(model.loss, "from_logits", False)  # whether the outputs are scores, not probabilities

    def loss(labels, outputs):
        targets = tf.one_hot(tf.cast(tf.reshape(labels, [-1]), tf.int32), outputs.shape[-1])
        return keras.losses.categorical_crossentropy(targets, outputs, from_logits, smoothing)
    return loss


class OneCycle(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises to `peak` in the first part, `warm_up`, of all `steps`, and then falls to 0
    (https://arxiv.org/abs/1708.07120)."""

    def __init__(self, peak, steps):
        self.peak, self.steps = peak, steps

    def get_config(self):
        return {"peak": self.peak, "steps": self.steps}

    def __call__(self, step):
        done = tf.cast(step, tf.float32) / self.steps
        return self.peak * tf.minimum(done / warm_up, (1 - done) / (1 - warm_up))


def kernels_for_muon(variables):
    """Return the kernels of convolutions and Dense layers, all but the last, which learns better with Adam. One with a
    single column does not count: it has no directions. A depthwise convolution is such a one."""
    return [variable for variable in variables if len(variable.shape) in (2, 4) and variable.shape[-1] > 1][:-1]


class Muon(keras.optimizers.Adam):
    """Muon (https://kellerjordan.github.io/posts/muon/) for all kernels but the last, and Adam for the rest; Keras' own
    Muon does not support convolutions. It makes the singular values of each update about equal, so that a kernel
    learns in all directions at once; here, those of each block of columns, since a whole Dense layer takes too long."""

    muon_share = muon_peak / adam_peak  # Muon's learning rate as a part of Adam's

    def build(self, variables):
        super().build(variables)
        self.muon_momentums = {}
        for kernel in kernels_for_muon(variables):
            self.muon_momentums[kernel.value.ref()] = self.add_variable_from_reference(kernel, "muon_momentum")

    def update_step(self, gradient, variable, learning_rate):
        momentum = self.muon_momentums.get(variable.ref())  # here, it is TensorFlow's variable
        if momentum is None:
            return super().update_step(gradient, variable, learning_rate)
        self.assign(momentum, 0.95 * momentum + gradient)
        columns = variable.shape[-1]
        width = max(n for n in range(1, widest_block + 1) if columns % n == 0)
        blocks = tf.reshape(gradient + 0.95 * momentum, (-1, columns // width, width))
        blocks = orthogonal(tf.transpose(blocks, (1, 0, 2)))  # (blocks, rows, width); rows are 3 * 3 * channels
        update = tf.reshape(tf.transpose(blocks, (1, 0, 2)), variable.shape)
        rate = learning_rate * self.muon_share * max(1, blocks.shape[1] / width) ** 0.5
        self.assign_sub(variable, rate * update)


def orthogonal(matrices):
    """Return matrices, float (n, rows, columns), with the same singular vectors, and singular values of about 1.
    These are five Newton-Schulz iterations with Muon's published coefficients. Each would multiply the matrices by a
    polynomial of their Gram matrices; to multiply these small ones first gives the same, and is quicker."""
    matrices /= tf.norm(matrices, axis=(1, 2), keepdims=True) + 1e-7
    gram = tf.matmul(matrices, matrices, transpose_a=True)
    product = identity = tf.eye(gram.shape[-1])
    for _ in range(5):
        factor = 3.4445 * identity - 4.7750 * gram + 2.0315 * gram @ gram
        gram = factor @ gram @ factor
        product = product @ factor
    return matrices @ product


def augment(ds_train, steps_per_epoch, first_epoch=0):
    """Return the training stream with images that are changed at random, differently in every pass. What happens in a
    step depends on its number, so a run that is resumed after `first_epoch` epochs goes on as if uninterrupted."""
    seed = random.getrandbits(31)  # --seed decides it
    steps = tf.data.Dataset.counter(first_epoch * steps_per_epoch)

    def change(step, batch):
        return change_images(batch, step // steps_per_epoch, (seed, step))
    return tf.data.Dataset.zip(steps, ds_train).map(change, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def change_images(batch, epoch, seed):
    """Return a batch, (images, labels, ...), with other images, (n, height, width, channels), of the same dtype: half
    of them flipped, the others in the next epoch (https://arxiv.org/abs/2404.00498); each shifted by a few pixels, with
    a square that is blanked out (https://arxiv.org/abs/1708.04552), as `seed`, two ints, decides."""
    given, *others = batch
    images = tf.cast(given, tf.float32)
    count = tf.shape(images)[0]
    height, width = images.shape[1:3]
    sums = tf.reduce_sum(tf.cast(1001 * images, tf.int64), (1, 2, 3))  # each image keeps its own, odd or even
    flipped = (sums + epoch) % 2 == 1
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
    images = tf.where(in_rows & in_columns, tf.reduce_mean(images, (0, 1, 2)), images)  # the batch's mean colour
    return tf.cast(images, given.dtype), *others


def within(pixels, place):
    """Return which of the pixel indices belong to the hole at each place, float (n, 1) in [0, 1]; a hole at the
    edge is smaller."""
    first = tf.cast(place * (len(pixels) + 1), tf.int32) - hole // 2
    return (pixels >= first) & (pixels < first + hole)
