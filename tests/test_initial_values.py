"""Orthogonal and whitening initial values, and what they leave alone."""
import numpy as np
import pytest

from conftest import prepared, root, take


def test_initial_values_are_orthogonal_and_the_first_layer_whitens(load):
    import keras
    import tensorflow as tf

    import train
    from support import initial_values
    keras.utils.set_random_seed(1)
    model = train.create_model((32, 32, 3))
    before = model.layers[-1].kernel.numpy()
    initial_values.set_all(model, load()[0], gain=0.4)
    first, *others, last = [layer for layer in model.layers if layer.weights]
    assert (last.kernel.numpy() == before).all()
    for layer in others:
        kernel = layer.kernel.numpy().reshape(-1, layer.kernel.shape[-1])
        np.testing.assert_allclose(np.linalg.svd(kernel, compute_uv=False), 0.4, rtol=1e-4)
    images = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3)) // np.array([1, 2, 8])  # not of equal variance
    images = (images + np.roll(images, 1, axis=2)).astype(np.float32) / 255  # and correlated
    first.set_weights(initial_values.whitening(tf.constant(images), (3, 3), 32, gain=0.4))
    outputs = first(images)[:, 1:-1, 1:-1].numpy().reshape(-1, 32)
    covariance = np.cov(outputs[:, :16].T) / 0.4 ** 2
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=0.01)
    assert (0.9 < np.diag(covariance)).all() and (np.diag(covariance) < 1).all()
    np.testing.assert_allclose(outputs[:, 16:], -outputs[:, :16], atol=1e-4)
    np.testing.assert_allclose(outputs.mean(axis=0), 0, atol=1e-3)


def test_it_whitens_what_other_layers_make_of_the_images(load, capsys):
    import keras

    from support import initial_values
    ds_train, ds_test, info = load()
    layers = keras.layers
    model = keras.Sequential([keras.Input((32, 32, 3)), layers.Rescaling(2.0, offset=-1), layers.Conv2D(32, 3),
                              layers.Flatten(), layers.Dense(10)])
    initial_values.set_all(model, ds_train, gain=0.4)
    assert "the first layer whitens" in capsys.readouterr().out
    images, labels = take(ds_train, 1000)
    outputs = model.layers[1](model.layers[0](images)).numpy().reshape(-1, 32)
    np.testing.assert_allclose(outputs.mean(axis=0), 0, atol=0.05)
    assert (outputs[:, :16].std(axis=0) < 1.1 * 0.4).all() and outputs[:, 15].std() > 0.9 * 0.4


def test_few_images_are_whitened_if_a_layer_makes_them_large(load, monkeypatch):
    from keras.layers import Conv2D, Dense, Flatten, Resizing

    from support import initial_values
    given = []
    whitening = initial_values.whitening

    def watched(images, size, filters, gain):
        given.append(images.shape)
        return whitening(images, size, filters, gain)
    monkeypatch.setattr(initial_values, "whitening", watched)
    prepared(load, Resizing(160, 160), Conv2D(8, 3, strides=16), Flatten(), Dense(10, "softmax"))
    assert given == [(20, 160, 160, 3)]


def kernels(model):
    return [layer.kernel.numpy() for layer in model.layers if layer.weights]


def test_what_is_trained_already_or_frozen_keeps_its_values(load, capsys):
    """In a model that was loaded, with a new last layer, and in layers or kernels that are not to be trained."""
    import keras
    from keras.layers import Conv2D, Dense, Flatten
    base = keras.models.load_model(root / "results/fast.h5", compile=False)
    before = kernels(base)
    model, _ = prepared(load, *base.layers[:-1], Dense(10, activation="softmax"))
    assert all(np.array_equal(a, b) for a, b in zip(before[:-1], kernels(model)[:-1]))
    said = capsys.readouterr().out
    assert "orthogonal initial values: 0 of 7 layers (the others are frozen, or trained already)" in said
    assert "no whitening: the first layer is frozen, trained already, or has" in said
    frozen, kernel_frozen, free = Conv2D(8, 3, trainable=False), Conv2D(8, 3), Conv2D(8, 3)
    kernel_frozen.build((None, 30, 30, 8))
    kernel_frozen.kernel.trainable = False
    model, _ = prepared(load, frozen, kernel_frozen, free, Flatten(), Dense(10, activation="softmax"))
    for layer in frozen, kernel_frozen:
        assert np.array_equal(layer.kernel, layer.kernel_initializer(layer.kernel.shape, "float32"))
    values = np.linalg.svd(free.kernel.numpy().reshape(-1, 8), compute_uv=False)
    assert values == pytest.approx(0.4 * np.ones(8), rel=1e-3)
    said = capsys.readouterr().out
    assert "initial values: 1 of 3 layers (the" in said and "  Muon for 1 kernel, Adam" in said
    prepared(load, Flatten(), Dense(8, trainable=False), Dense(10, activation="softmax"))
    said = capsys.readouterr().out
    assert "initial values: 0 of 1 layers (the" in said and "  Adam; its learning rate rises to" in said
