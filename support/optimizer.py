"""The optimizer of --fast: Muon for the kernels, Adam for the rest, with a learning rate that rises and falls.
Without this, --fast needs many more epochs for the same accuracy."""
import math

import keras
import tensorflow as tf

widest_block = 128  # columns of a kernel that Muon takes at once, since a whole Dense layer takes too long


class OneCycle(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises to `peak` in the first part, `warm_up`, of all `steps`, and then falls
    (https://arxiv.org/abs/1708.07120). It is 0 before the first step and after the last one."""

    def __init__(self, peak, steps, warm_up):
        self.peak, self.steps, self.warm_up = peak, steps, warm_up

    def get_config(self):
        return {"peak": self.peak, "steps": self.steps, "warm_up": self.warm_up}

    def __call__(self, step):
        done = (tf.cast(step, tf.float32) + 1) / (self.steps + 1)  # Keras counts steps from 0
        share = tf.minimum(done / self.warm_up, (1 - done) / (1 - self.warm_up))
        return self.peak * tf.maximum(share, 0)  # a learner's own `fit` may take more steps


def kernels_for_muon(variables):
    """Return the kernels of convolutions and Dense layers, all but the last, which learns better with Adam. One with a
    single column does not count: it has no directions. A depthwise convolution is such a one."""
    return [variable for variable in variables if len(variable.shape) in (2, 4) and variable.shape[-1] > 1][:-1]


class Muon(keras.optimizers.Adam):
    """Muon (https://kellerjordan.github.io/posts/muon/) for all kernels but the last, and Adam for the rest; Keras' own
    Muon does not support convolutions. It makes the singular values of each update about equal, so that a kernel
    learns in all directions at once; here, those of each block of columns.
    `muon_share` is Muon's learning rate as a part of Adam's; `options` are those of Adam."""

    def __init__(self, learning_rate, muon_share, **options):
        super().__init__(learning_rate, **options)
        self.muon_share = muon_share

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
        count = math.ceil(columns / widest_block)
        width = math.ceil(columns / count)
        matrix = tf.reshape(gradient + 0.95 * momentum, (-1, columns))
        matrix = tf.pad(matrix, ((0, 0), (0, count * width - columns)))  # the last block may lack a few columns
        blocks = tf.transpose(tf.reshape(matrix, (-1, count, width)), (1, 0, 2))
        blocks = newton_schulz(blocks)  # (blocks, rows, width); the rows of a convolution are 3 * 3 * channels
        matrix = tf.reshape(tf.transpose(blocks, (1, 0, 2)), (-1, count * width))
        update = tf.reshape(matrix[:, :columns], variable.shape)
        rate = learning_rate * self.muon_share * max(1, blocks.shape[1] / width) ** 0.5
        self.assign_sub(variable, rate * update)


def newton_schulz(matrices):
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
