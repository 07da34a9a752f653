"""--augment, and --fast in longer runs: images that change in every epoch.
Without this, a network that sees its training images often learns them by heart."""
import random

import tensorflow as tf

from support.errors import UserError


def strength(epochs):
    """Return by how many pixels the images of a run of this length are shifted at most, and the side of the square that
    is hidden of each, in pixels. Short runs learn more from easier images."""
    return (2, 6) if epochs < 10 else (3, 8)


def stream(ds_train, steps_per_epoch, epochs, first_epoch=0):
    """Return the training stream with images that are changed at random, differently in every pass. What happens in a
    step depends on its number: a run that is resumed after `first_epoch` of its `epochs` goes on as if uninterrupted.
    Raises UserError if the stream has no images, (n, height, width, channels)."""
    shape = ds_train.element_spec[0].shape
    if shape.rank != 4:
        raise UserError(f"What preprocess_image() returns, {shape}, cannot be flipped and shifted.\n"
                        "Leave out --augment; with --fast, set augmented_from = 10_001 in support/fast.py.")
    seed = random.getrandbits(31)  # --seed decides it
    steps = tf.data.Dataset.counter(first_epoch * steps_per_epoch)

    def change(step, batch):
        return change_images(batch, step // steps_per_epoch, (seed, step), *strength(epochs))
    return tf.data.Dataset.zip(steps, ds_train).map(change, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def change_images(batch, epoch, seed, farthest, hole):
    """Return a batch, (images, labels, ...), with other images, (n, height, width, channels), of the same dtype: half
    of them flipped, the others in the next epoch (https://arxiv.org/abs/2404.00498); each shifted by up to
    `farthest` pixels, with a square of `hole` x `hole` hidden (https://arxiv.org/abs/1708.04552), as `seed`, two ints,
    decides."""
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
    in_rows = within(tf.range(height), top, hole)[:, :, None, None]
    in_columns = within(tf.range(width), left, hole)[:, None, :, None]
    images = tf.where(in_rows & in_columns, tf.reduce_mean(images, (0, 1, 2)), images)  # the batch's mean colour
    return tf.cast(images, given.dtype), *others


def within(pixels, place, hole):
    """Return which of the pixel indices belong to the hole, of this side, at each place, float (n, 1) in [0, 1]; a hole
    at the edge is smaller."""
    first = tf.cast(place * (len(pixels) + 1), tf.int32) - hole // 2
    return (pixels >= first) & (pixels < first + hole)
