"""How tf.data runs the input pipeline. Without this, a training or a test may take up to a minute longer to end."""
import tensorflow as tf


def without_tuning():
    """Return tf.data.Options that keep tf.data from tuning a pipeline while it runs. The thread that tunes sleeps for
    longer and longer, up to a minute, and sometimes misses the end of the pipeline; the program then waits for it.
    Without tuning, tf.data.AUTOTUNE stands for fixed numbers, which are as quick here."""
    options = tf.data.Options()
    options.autotune.enabled = False
    return options
