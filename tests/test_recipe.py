"""--fast and --augment: what they change, what they leave alone, and that a resumed run keeps them."""
import os
import time
from argparse import Namespace

import h5py
import numpy as np
import pytest

from conftest import (
    checkpoint,
    curves,
    environment,
    keys,
    message,
    name,
    rare,
    root,
    run,
    same_as_undisturbed,
    source,
    start,
    take,
    wait_for,
)

options = ["--seed", 1, "--fast", "--augment", "--epochs", 4]  # one step each on the tiny data set


def blanked_out(images):
    """Which pixels of a batch have the colour that most of them have."""
    keys = images @ np.array([1, 1e3, 1e6])  # a number for each colour; to sort triples would be slow
    found, counts = np.unique(keys, return_counts=True)
    colour = images[keys == found[counts.argmax()]][0]
    assert np.allclose(colour, images.mean(axis=(0, 1, 2)), atol=0.02)
    return (images == colour).all(axis=-1)


def test_augment_flips_and_shifts_and_takes_a_square_out(load):
    import keras

    from support import recipe
    keras.utils.set_random_seed(3)
    ds_train, ds_test, info = load(batch_size=50)
    augmented = recipe.augment(ds_train, 20)
    images, labels = take(augmented, 2000)
    keras.utils.set_random_seed(3)
    originals, same_labels = take(load(batch_size=50)[0], 2000)
    assert images.dtype == np.float32 and images.shape == originals.shape and (labels == same_labels).all()
    out = np.concatenate([blanked_out(batch) for batch in np.split(images, 40)])
    assert (out.sum(axis=(1, 2)) <= 64).all() and (out.sum(axis=(1, 2)) >= 16).all()
    assert (out.sum(axis=(1, 2)) == out.any(axis=1).sum(axis=1) * out.any(axis=2).sum(axis=1)).all(), "no rectangle"
    share = out.mean(axis=0)  # 0.06 in the middle, less at the edges
    assert share.min() > 0.005 and share.max() < 0.1, "the square is not at random places"
    one_number = np.array([1, 256, 256 ** 2])  # for each colour
    pixels = np.uint8(images * 255 + 0.5) @ one_number
    padded = np.pad(np.uint8(originals * 255 + 0.5) @ one_number, ((0, 0), (3, 3), (3, 3)), mode="reflect")
    found = np.zeros((2, 7, 7, 2000), bool)  # flipped, shifted down, shifted right
    for rows, columns in np.ndindex(7, 7):
        for flipped, source_images in enumerate((padded, padded[:, :, ::-1])):
            cut = source_images[:, rows:rows + 32, columns:columns + 32]
            found[flipped, rows, columns] = ((cut == pixels) | out).all(axis=(1, 2))
    assert (found.sum(axis=(0, 1, 2)) == 1).all(), "an image is something else than flipped and shifted"
    assert 400 < found[1, :, :, :1000].sum() < 600, "not half of the images are flipped"  # 500, 6.3 deviations
    assert (190 < found.sum(axis=(0, 2, 3))).all() and (190 < found.sum(axis=(0, 1, 3))).all()  # 286, less 6
    assert (2 < found.sum(axis=3)).all(), "a flip and a shift depend on each other"  # 20, less 4
    kinds = found.reshape(98, 2, 1000).argmax(axis=0)
    first, second = (dict(zip(keys(originals[part], labels[part]), kind)) for part, kind in zip(
        (slice(1000), slice(1000, 2000)), kinds))
    assert sum(first[image] % 49 != second[image] % 49 for image in first) > 950, "both passes shift the images alike"
    assert all(first[image] // 49 + second[image] // 49 == 1 for image in first), "not flipped in every other pass"
    keras.utils.set_random_seed(3)
    again = recipe.augment(load(batch_size=50)[0], 20)
    assert np.array_equal(take(again, 1000)[0], images[:1000])
    keras.utils.set_random_seed(3)
    resumed = recipe.augment(load(batch_size=50)[0].skip(20), 20, first_epoch=1)
    assert np.array_equal(take(resumed, 1000)[0], images[1000:])
    assert sorted(keys(*take(ds_test, 400))) == source(40, seed=1), "test images are never changed"


def test_the_rate_rises_and_falls_and_tensorboard_shows_it(undisturbed):
    from support import recipe
    found = curves(undisturbed / "logs" / name)
    scale = (3 / 4) ** (1 / 3)  # longer runs have lower rates
    rates = found["train/epoch_learning_rate"]
    assert [step for step, rate in rates] == [0, 1, 2, 3]
    expected = [scale * recipe.adam_peak * min(done / recipe.warm_up, (1 - done) / (1 - recipe.warm_up))
                for done in (0.25, 0.5, 0.75, 1)]
    assert np.allclose([rate for step, rate in rates], expected, atol=1e-7)


def test_long_runs_have_dropout():
    from support import recipe
    rates = [recipe.dropout_rates([0.25, 0.5], epochs) for epochs in (1, 10, 20, 30, 100)]
    assert rates == [[0, 0], [0, 0], [0, 0.075], [0, 0.15], [0, 0.15]]
    assert recipe.dropout_rates([], 30) == []


def test_two_epochs_are_the_default(monkeypatch):
    import train
    monkeypatch.setattr("sys.argv", ["train.py", "--fast"])
    assert train.parse_args().epochs == 2


def test_initial_values_are_orthogonal_and_the_first_layer_whitens(load):
    import keras
    import tensorflow as tf

    import train
    from support import recipe
    keras.utils.set_random_seed(1)
    model = train.create_model((32, 32, 3))
    before = model.layers[-1].kernel.numpy()
    copy = recipe.fast_copy(model, load, 15, Namespace(epochs=2, batch_size=64), precision="float32")
    first, *others, last = [layer for layer in copy.layers if layer.weights]
    assert (last.kernel.numpy() == before).all()
    for layer in others:
        kernel = layer.kernel.numpy().reshape(-1, layer.kernel.shape[-1])
        np.testing.assert_allclose(np.linalg.svd(kernel)[1], recipe.gain, rtol=1e-4)
    images = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3)) // np.array([1, 2, 8])  # not of equal variance
    images = (images + np.roll(images, 1, axis=2)).astype(np.float32) / 255  # and correlated
    first.set_weights(recipe.whitening(tf.constant(images), (3, 3), 32))
    outputs = first(images)[:, 1:-1, 1:-1].numpy().reshape(-1, 32)
    covariance = np.cov(outputs[:, :16].T) / recipe.gain ** 2
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=0.01)
    assert (0.9 < np.diag(covariance)).all() and (np.diag(covariance) < 1).all()
    np.testing.assert_allclose(outputs[:, 16:], -outputs[:, :16], atol=1e-4)
    np.testing.assert_allclose(outputs.mean(axis=0), 0, atol=1e-3)


def test_it_whitens_what_other_layers_make_of_the_images(load):
    import keras

    from support import recipe
    ds_train, ds_test, info = load()
    layers = keras.layers
    model = keras.Sequential([keras.Input((32, 32, 3)), layers.Rescaling(2.0, offset=-1), layers.Conv2D(32, 3),
                              layers.Flatten(), layers.Dense(10)])
    assert recipe.whiten_first_layer(model, ds_train, new=model.layers) == ", a whitening first layer"
    images, labels = take(ds_train, 1000)
    outputs = model.layers[1](model.layers[0](images)).numpy().reshape(-1, 32)
    np.testing.assert_allclose(outputs.mean(axis=0), 0, atol=0.05)
    assert (outputs[:, :16].std(axis=0) < 1.1 * recipe.gain).all() and outputs[:, 15].std() > 0.9 * recipe.gain


@pytest.mark.parametrize("shape, width", [((3, 3, 8, 16), 16), ((300, 256), 128), ((300, 200), 100)])
def test_muon_makes_the_singular_values_of_blocks_about_equal(shape, width):
    import keras
    import tensorflow as tf

    from support import recipe
    random = np.random.default_rng(0)
    kernel, bias, last = (keras.Variable(np.zeros(size, np.float32)) for size in (shape, (16,), (5, 3)))
    rows = np.prod(shape[:-1])
    left, right = random.normal(size=(rows, 4)), random.normal(size=(4, shape[-1]))
    gradients = [(left @ np.diag([100, 10, 1, 0.5]) @ right).reshape(shape), random.normal(size=16),
                 random.normal(size=(5, 3))]
    optimizer = recipe.Muon(recipe.adam_peak)
    optimizer.build([kernel, bias, last])
    optimizer.apply([tf.constant(gradient, tf.float32) for gradient in gradients])
    change = -kernel.numpy().reshape(rows, -1) / recipe.muon_peak / (rows / width) ** 0.5
    for column in range(0, shape[-1], width):
        values = np.linalg.svd(change[:, column:column + width])[1]
        assert (values[:3] > 0.5).all() and (values < 1.3).all()
    for variable, gradient in ((bias, gradients[1]), (last, gradients[2])):
        first_step = -recipe.adam_peak * np.sign(gradient)  # Adam's
        np.testing.assert_allclose(variable.numpy(), first_step, rtol=1e-3)


def test_a_network_without_a_softmax(load):
    import keras

    from support import recipe
    model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(10)])
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    copy = recipe.fast_copy(model, load, 15, Namespace(epochs=2, batch_size=64))
    scores = np.random.default_rng(0).normal(size=(5, 10)).astype(np.float32)
    model.compile(loss="sparse_categorical_crossentropy")
    expected = recipe.smoothed_loss(model)(np.arange(5), keras.ops.softmax(scores))
    np.testing.assert_allclose(copy.loss(np.arange(5), scores), expected, rtol=1e-5)


def copied(load, *layers, loss="sparse_categorical_crossentropy", shape=(32, 32, 3), **arguments):
    """A network of these layers, and the copy that --fast trains."""
    import keras

    from support import recipe
    model = keras.Sequential([keras.Input(shape), *layers])
    model.compile(loss=loss, metrics=["accuracy"], **arguments)
    return model, recipe.fast_copy(model, load, 15, Namespace(epochs=2, batch_size=64), precision="mixed_bfloat16")


def kernels(model):
    return [layer.kernel.numpy() for layer in model.layers if layer.weights]


def test_what_is_trained_already_or_frozen_keeps_its_values(load, capsys):
    """In a model that was loaded, with a new last layer, and in layers that are not to be trained."""
    import keras
    from keras.layers import Conv2D, Dense, Flatten
    base = keras.models.load_model(root / "results/fast.h5", compile=False)
    model, copy = copied(load, *base.layers[:-1], Dense(10, activation="softmax"))
    assert all(np.array_equal(a, b) for a, b in zip(kernels(base)[:-1], kernels(copy)[:-1]))
    said = capsys.readouterr().out
    assert "but not for 7 of 7 layers: frozen, or not new" in said
    assert "no whitening: the first layer is frozen, not new, or has" in said
    frozen, free = Conv2D(8, 3, trainable=False), Conv2D(8, 3)
    model, copy = copied(load, frozen, free, Flatten(), Dense(10, activation="softmax"))
    assert np.array_equal(kernels(copy)[0], frozen.kernel_initializer(frozen.kernel.shape, "float32"))
    assert np.linalg.svd(kernels(copy)[1].reshape(-1, 8))[1] == pytest.approx(0.4 * np.ones(8), rel=1e-3)
    assert [layer.trainable for layer in copy.layers if layer.weights] == [False, True, True]
    assert "but not for 1 of 2 layers" in capsys.readouterr().out
    copied(load, Flatten(), Dense(8, trainable=False), Dense(10, activation="softmax"))
    said = capsys.readouterr().out
    assert "no other initial values (but not for 1 of 1 layers: " in said and "; Adam;" in said


def test_another_loss_stays(load, capsys):
    import keras
    from keras.layers import Dense, Flatten

    def own(labels, outputs):
        return outputs[..., 0]
    ignoring = keras.losses.SparseCategoricalCrossentropy(ignore_class=3)
    for loss, last in ("binary_crossentropy", Dense(1, "sigmoid")), (own, Dense(10)), \
            (ignoring, Dense(10, "softmax")), ("sparse_categorical_crossentropy", Dense(1, "softmax")):
        model, copy = copied(load, Flatten(), Dense(8), last, loss=loss)
        assert copy.loss is model.loss
        assert "no dropout, the network's own loss,\n" in capsys.readouterr().out


def test_the_three_spellings_of_the_loss_are_known(load):
    import keras
    from keras.layers import Dense, Flatten
    answers = np.random.default_rng(0).random((5, 10)).astype(np.float32)
    answers /= answers.sum(axis=1, keepdims=True)
    losses = keras.losses
    for loss in "sparse_categorical_crossentropy", losses.sparse_categorical_crossentropy, \
            losses.SparseCategoricalCrossentropy():
        model, copy = copied(load, Flatten(), Dense(10, "softmax"), loss=loss)
        right, all_classes = np.log(answers[range(5), range(5)]), np.log(answers).mean(axis=1)
        expected = -0.8 * right - 0.2 * all_classes
        np.testing.assert_allclose(copy.loss(np.arange(5), answers), expected, rtol=1e-4)


def test_inner_networks_are_reached(load, capsys):
    import keras
    from keras.layers import Conv2D, Dense, Dropout, Flatten
    block = keras.Sequential([keras.Input((32, 32, 3)), Conv2D(8, 3), Dropout(0.5)])
    model, copy = copied(load, block, Flatten(), Dense(16), Dense(10, "softmax"), run_eagerly=True,
                         steps_per_execution=3)
    inputs, first, *others = copy.layers
    inner = first.layers
    assert [layer.dtype_policy.name for layer in [*inner, *others]] == 4 * ["mixed_bfloat16"] + ["float32"]
    assert inner[1].rate == 0 and block.layers[1].rate == 0.5 and block.layers[0].dtype_policy.name == "float32"
    assert np.linalg.svd(inner[0].kernel.numpy().reshape(27, 8))[1] == pytest.approx(0.4 * np.ones(8), rel=1e-3)
    assert "in an inner network)" in capsys.readouterr().out
    assert copy.run_eagerly and copy.steps_per_execution == 3 and type(model.optimizer) is keras.optimizers.RMSprop


def test_few_images_are_whitened_if_a_layer_makes_them_large(load, monkeypatch):
    from keras.layers import Conv2D, Dense, Flatten, Resizing

    from support import recipe
    given = []
    whitening = recipe.whitening

    def watched(images, size, filters):
        given.append(images.shape)
        return whitening(images, size, filters)
    monkeypatch.setattr(recipe, "whitening", watched)
    copied(load, Resizing(160, 160), Conv2D(8, 3, strides=16), Flatten(), Dense(10, "softmax"))
    assert given == [(20, 160, 160, 3)]


def test_layers_of_ones_own_in_the_copy(load):
    """One without weights is in both networks; of one with weights, it is said what it needs."""
    import keras
    from keras.layers import Dense, Flatten, Lambda

    from support import recipe
    from support.messages import UserError

    class Scale(keras.layers.Layer):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def call(self, images):
            return images * self.factor

    class Shift(Scale):
        def build(self, shape):
            self.shift = self.add_weight(shape=(1,))

    model, copy = copied(load, Lambda(lambda images: images * 2), Scale(2), Flatten(), Dense(10, "softmax"))
    images = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    np.testing.assert_allclose(copy.predict(images, verbose=0), model.predict(images, verbose=0), atol=0.01)
    with pytest.raises(UserError, match="get_config") as error:
        copied(load, Shift(2), Flatten(), Dense(10, "softmax"))
    assert "train without --fast" in message(str(error.value)) and "Shift" in str(error.value)

    class Own(keras.Model):
        def train_step(self, *arguments):
            return super().train_step(*arguments)

    inputs = keras.Input((32, 32, 3))
    model = Own(inputs, Dense(10, "softmax")(Flatten()(inputs)))
    model.compile(loss="mse")
    with pytest.raises(UserError, match="cannot copy your class Own"):
        recipe.fast_copy(model, load, 15, Namespace(epochs=2, batch_size=64))


def test_augment_takes_whole_numbers_and_weights(load):
    """Of uint8 images, too, each is flipped in one of two epochs, and sample weights stay as they are."""
    import tensorflow as tf

    from support import recipe
    images = np.random.default_rng(0).integers(0, 256, (100, 32, 32, 3)).astype(np.uint8)
    flips = []
    for epoch in 0, 1:
        changed, labels, weights = recipe.change_images((images, tf.range(100), 2.5), epoch, (1, epoch))
        assert changed.dtype == tf.uint8 and (labels.numpy() == range(100)).all() and weights == 2.5
        middle = images[:, 3:-3, 3:-3]
        flips.append([not any((changed[number, row:row + 26, column:column + 26].numpy() == middle[number]).mean() > 0.8
                              for row, column in np.ndindex(7, 7)) for number in range(20)])
    assert all(first != second for first, second in zip(*flips)) and 3 < sum(flips[0]) < 17


def test_a_resumed_run_does_not_augment_what_it_skips(load, monkeypatch):
    import tensorflow as tf

    from support import recipe
    count = tf.Variable(0)
    change = recipe.change_images

    def counted(*arguments):
        count.assign_add(1)
        return change(*arguments)
    monkeypatch.setattr(recipe, "change_images", counted)
    stream = recipe.augment(load(batch_size=50)[0].skip(200), 20, first_epoch=10)
    next(iter(stream))
    assert 1 <= count.numpy() < 50


def test_measuring_the_precision_takes_bounded_time(monkeypatch):
    from support import machine
    taken = []

    def slow(dtype):
        taken.append(dtype)
        time.sleep(0.2)
        return 0.2
    monkeypatch.setattr(machine, "time_in", slow)
    assert machine.faster_precision() == "float32" and 2 <= len(taken) <= 12


def test_it_says_what_it_does_and_resumes_to_the_same_bytes(half, undisturbed, tiny):
    out, err = run("train.py", *options, cwd=half, data=tiny)
    assert "Resuming after epoch" in out and err == ""
    assert "Fast recipe: 4 epochs in " in out and "Muon" in out and "rise to 0.0027 and 0.0018" in out
    same_as_undisturbed(half, undisturbed)


def test_a_run_with_more_epochs_is_another_one(half, tiny):
    """Its learning rates would be others from the first step on."""
    before = (half / checkpoint).read_bytes()
    out, err = run("train.py", *options, "--epochs", 6, cwd=half, data=tiny, code=1)
    assert "epochs 4, not 6" in message(err)
    assert "rise to 0.0024 and 0.0016" in out, "longer runs have lower rates"
    assert (half / checkpoint).read_bytes() == before


def test_other_batch_sizes_have_other_rates(load, capsys):
    import train
    from support import recipe
    recipe.fast_copy(train.create_model((32, 32, 3)), load, 62, Namespace(epochs=3, batch_size=16))
    assert "rise to 0.0015 and 0.001," in capsys.readouterr().out  # half of those for 64


def test_the_saved_model_has_the_tutorials_dropout_and_precision(undisturbed):
    from support.models import load_model
    model = load_model(undisturbed / f"results/{name}.h5")
    assert [layer.rate for layer in model.layers if hasattr(layer, "rate")] == [0.25, 0.25, 0.25, 0.5]
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32"} and model.count_params() == 2395434


@rare
@pytest.mark.parametrize("fast, policy", [(False, "float32"), (True, "float32"), (True, "mixed_bfloat16"),
                                          (True, "mixed_float16")])
def test_both_recipes_compile_for_gpus(fast, policy, load, monkeypatch):
    """On a GPU, Keras compiles the training step with XLA by itself; here it is asked to."""
    import keras

    import train
    from support import machine, recipe
    monkeypatch.setattr(machine, "faster_precision", lambda: policy)
    ds_train, ds_test, info = load(batch_size=8)
    model = train.create_model((32, 32, 3))
    if fast:
        model = recipe.fast_copy(model, load, 125, Namespace(epochs=1, batch_size=8))
    model.compile(model.optimizer, model.loss, metrics=["accuracy"], jit_compile=True, auto_scale_loss=False)
    before = model.get_weights()
    history = model.fit(ds_train, steps_per_epoch=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert all((old != new).any() for old, new in zip(before, model.get_weights()))
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == (policy == "mixed_float16")


@rare
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_a_model_trained_in_16_bits_is_like_any_other(policy, tiny, tmp_path):
    """The test chooses instead of the machine, since few have both; all else runs as it is, emulated if need be."""
    program = tmp_path / "train.py"
    program.write_text(f"import sys; sys.path[0] = {str(root)!r}; import support.start, train\n"
                       f"train.machine.faster_precision = lambda: {policy!r}\ntrain.main()")
    options = ["--fast", "--epochs", 2, "--seed", 1]
    env = environment(tiny, ONEDNN_MAX_CPU_ISA=os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL"))
    script = start(program, *options, cwd=tmp_path, data=tiny, env=env)
    assert wait_for(tmp_path / checkpoint, script, size=1_000_000), script.output()
    script.kill()
    again = program if policy == "mixed_float16" else "train.py"  # which may choose otherwise on this CPU
    out, err = run(again, *options, cwd=tmp_path, data=tiny, env=env)
    assert "Resuming after epoch 1 of 2" in out and err == ""
    last = out.split("val_accuracy: ")[-1].split()[0]
    with h5py.File(tmp_path / f"results/{name}.h5") as file:
        assert "mixed" not in file.attrs["model_config"] and "Muon" not in file.attrs["training_config"]
        found = []
        file["model_weights"].visititems(lambda path, item: found.append(getattr(item, "dtype", np.float32)))
    assert found and all(dtype == np.float32 for dtype in found)
    out, err = run("test.py", cwd=tmp_path, data=tiny)
    accuracy = float(out.split("Test accuracy: ")[1].split()[0]) / 100
    assert err == "" and abs(accuracy - float(last)) <= 0.0501  # 16 bits may classify 2 of the 40 images differently
