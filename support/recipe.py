"""--fast and --augment: the same network reaches more in fewer epochs.

Without it, a good model takes 30 epochs.
"""
import keras
import tensorflow as tf

# The dials of --fast. They were chosen on 5,000 training images kept aside, and belong to batches of 64.
fast_epochs = 4
adam_peak = 0.002  # highest learning rate of Adam; longer runs have lower ones
muon_peak = 0.003  # and of Muon
warm_up = 0.15  # part of the run in which the learning rates rise


def fast_optimizer(epochs, steps_per_epoch):
    """Return the optimizer for a run of `epochs` epochs, and say what it does."""
    scale = min(1, fast_epochs / epochs) ** 0.5  # longer runs get further with lower rates
    print(f"Fast recipe: {epochs} epoch{'s' * (epochs > 1)} in {keras.config.dtype_policy().name}, "
          "Muon for the convolutions, Adam for the rest;\n"
          f"their learning rates rise to {scale * muon_peak:.2g} and {scale * adam_peak:.2g}, then fall to 0",
          flush=True)
    return Muon(OneCycle(scale * adam_peak, epochs * steps_per_epoch))


class OneCycle(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises from 0 to `peak`, then falls to 0 at step `steps`, both linearly.

    Source: Smith and Topin, "Super-Convergence", https://arxiv.org/abs/1708.07120
    """

    def __init__(self, peak, steps):
        self.peak, self.steps = peak, steps

    def __call__(self, step):
        done = tf.cast(step, tf.float32) / self.steps
        return self.peak * tf.minimum(done / warm_up, (1 - done) / (1 - warm_up))

    def get_config(self):
        return {"peak": self.peak, "steps": self.steps}


class Muon(keras.optimizers.Adam):
    """Muon for the kernels of the convolutions, Adam for everything else. (Keras' own Muon takes no convolutions.)

    Muon makes the singular values of each update about equal, so that a kernel learns in all directions at once.
    Source: Jordan, "Muon: An optimizer for hidden layers in neural networks", https://kellerjordan.github.io/posts/muon/
    """

    @property
    def muon_rate(self):
        return self.learning_rate * muon_peak / adam_peak

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
        rate = learning_rate * muon_peak / adam_peak * max(1, rows / columns) ** 0.5
        self.assign_sub(variable, rate * tf.reshape(matrix, variable.shape))


def flip_and_shift(example, seed):
    """Flip an image, or not, and shift it by up to 2 pixels."""
    image, label = example
    image = tf.image.stateless_random_flip_left_right(image, seed)
    image = tf.pad(image, [[2, 2], [2, 2], [0, 0]], "REFLECT")
    return tf.image.stateless_random_crop(image, (32, 32, 3), seed + 1), label
