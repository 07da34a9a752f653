"""Muon, and the learning rate that rises and falls."""
import numpy as np
import pytest


@pytest.mark.parametrize("shape, width", [((3, 3, 8, 16), 16), ((300, 256), 128), ((300, 200), 100), ((300, 251), 126)])
def test_muon_makes_the_singular_values_of_blocks_about_equal(shape, width):
    """Of a prime number of columns, too: its last block is filled up."""
    import keras
    import tensorflow as tf

    from support import fast, optimizer
    random = np.random.default_rng(0)
    kernel, bias, last = (keras.Variable(np.zeros(size, np.float32)) for size in (shape, (16,), (5, 3)))
    rows = np.prod(shape[:-1])
    left, right = random.normal(size=(rows, 4)), random.normal(size=(4, shape[-1]))
    gradients = [(left @ np.diag([100, 10, 1, 0.5]) @ right).reshape(shape), random.normal(size=16),
                 random.normal(size=(5, 3))]
    muon = optimizer.Muon(fast.adam_peak, fast.muon_peak / fast.adam_peak)
    muon.build([kernel, bias, last])
    muon.apply([tf.constant(gradient, tf.float32) for gradient in gradients])
    change = -kernel.numpy().reshape(rows, -1) / fast.muon_peak / (rows / width) ** 0.5
    for column in range(0, shape[-1], width):
        values = np.linalg.svd(change[:, column:column + width], compute_uv=False)
        assert (values[:3] > 0.5).all() and (values < 1.3).all()
    for variable, gradient in ((bias, gradients[1]), (last, gradients[2])):
        first_step = -fast.adam_peak * np.sign(gradient)  # Adam's
        np.testing.assert_allclose(variable.numpy(), first_step, rtol=1e-3)


@pytest.mark.parametrize("steps", [1, 2, 100])
def test_every_step_learns(steps):
    from support import fast, optimizer
    rate = optimizer.OneCycle(1.0, steps, fast.warm_up)
    rates = np.array([float(rate(step)) for step in range(steps)])
    assert (rates > 0).all() and (rates <= 1).all()
    top = rates.argmax()
    assert (np.diff(rates[:top + 1]) > 0).all() and (np.diff(rates[top:]) <= 0).all()
    assert steps < 100 or 14 <= top <= 16
    assert float(rate(steps)) == float(rate(10 * steps)) == 0, "more steps unlearn what was learned"
