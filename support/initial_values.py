"""Initial values from which a network learns faster: a first layer that whitens the images, orthogonal kernels.
Without this, --fast learns less in its first epochs."""
import keras
import numpy as np
import tensorflow as tf
from keras.layers import Conv2D, Dense


def inner_layers(model):
    """Return the layers of the model, a list; instead of a network inside it, the layers of that."""
    found = []
    for layer in model.layers:
        found += inner_layers(layer) if isinstance(layer, keras.Model) else [layer]
    return found


def set_all(model, ds_train, gain):
    """Set the initial values of all convolutions and Dense layers but the last one, and print which; `gain` is their
    size. `ds_train` has batches of images, as the model gets them, and labels. What is frozen, or no longer as its
    initializer has made it, stays."""
    layers = inner_layers(model)
    with_kernels = [layer for layer in layers if isinstance(layer, (Conv2D, Dense))][:-1]
    new = [layer for layer in with_kernels if is_untrained(layer)]
    for layer in new:  # https://arxiv.org/abs/1312.6120
        layer.kernel.assign(keras.initializers.Orthogonal(gain)(layer.kernel.shape))
    others = " (the others are frozen, or trained already)" if len(new) < len(with_kernels) else ""
    print(f"  orthogonal initial values: {len(new)} of {len(with_kernels)} layers{others}")
    whiten_first_layer(model, ds_train, new, gain)


def is_untrained(layer):
    """Return whether the kernel of a layer is to be trained, and is still as its initializer has made it."""
    kernel = layer.kernel
    if not isinstance(kernel, keras.Variable) or not kernel.trainable:  # with enable_lora(), it is no variable
        return False
    made = layer.kernel_initializer(kernel.shape, kernel.dtype)  # an initializer makes the same values again
    return np.array_equal(kernel, made)


def whiten_first_layer(model, ds_train, new, gain):
    """Let the first layer whiten (https://arxiv.org/abs/2404.00498), if it is one of the `new` ones and can do it.
    Print whether it does."""
    first = next(layer for layer in inner_layers(model) if layer.weights)
    ordinary = isinstance(first, Conv2D) and first.groups == 1 and first.dilation_rate == (1, 1)
    if not ordinary or first not in model.layers:
        print("  no whitening: the first layer with weights is not an ordinary convolution, or in an inner network")
        return
    values = first.kernel.shape[2] * first.kernel_size[0] * first.kernel_size[1]
    if first.filters > 2 * values or first not in new:
        print(f"  no whitening: the first layer is frozen, trained already, or has more than {2 * values} filters")
        return
    before = keras.Model(model.inputs, first.input)  # layers such as Rescaling and Resizing
    height, width = before.compute_output_shape(ds_train.element_spec[0].shape)[1:3]
    count = 1 + 500_000 // (height * width)  # 489 images of 32x32 pixels
    images = before(next(iter(ds_train.unbatch().batch(count)))[0])
    kernel, bias = whitening(images, first.kernel_size, first.filters, gain)
    first.kernel.assign(kernel)
    if first.use_bias:
        first.bias.assign(bias)
    print("  but the first layer whitens the images")


def whitening(images, size, filters, gain):
    """Return kernel and bias of a convolution of this kernel size. Its filters are the principal components of patches
    of the `images`, (n, height, width, channels): their outputs are uncorrelated, with a standard deviation of about
    `gain`. The second half of the filters are the negatives of the first."""
    images = tf.cast(images, tf.float32)
    patches = tf.image.extract_patches(images, (1, *size, 1), (1, 1, 1, 1), (1, 1, 1, 1), "VALID")
    patches = tf.reshape(patches, (-1, patches.shape[-1])).numpy()
    variances, components = np.linalg.eigh(np.cov(patches.T))  # the smallest comes first
    half = (filters + 1) // 2
    kernel = gain * (components / np.sqrt(variances + 0.001))[:, -half:]
    kernel = np.concatenate([kernel, -kernel], axis=1)[:, :filters]
    return kernel.reshape(*size, -1, filters), -patches.mean(axis=0) @ kernel
