"""--fast: the learner's own network is trained, and afterwards is as they wrote it. A run resumes to the same bytes."""
import os
import sys
import time
from argparse import Namespace

import h5py
import numpy as np
import pytest

from conftest import (
    checkpoint,
    curves,
    edited,
    environment,
    hparams_of,
    message,
    name,
    prepared,
    rare,
    root,
    run,
    same_as_undisturbed,
    start,
    wait_for,
)

options = ["--seed", 1, "--fast", "--epochs", 4]  # one step each on the tiny data set


def test_the_rate_rises_and_falls_and_tensorboard_shows_it(undisturbed):
    from support import fast
    found = curves(undisturbed / "logs" / name)
    scale = (3 / 4) ** (1 / 3)  # longer runs have lower rates
    rates = found["train/epoch_learning_rate"]
    assert [step for step, rate in rates] == [0, 1, 2, 3]
    expected = [scale * fast.adam_peak * min(done / fast.warm_up, (1 - done) / (1 - fast.warm_up))
                for done in (0.4, 0.6, 0.8, 1)]  # those of the next step
    assert np.allclose([rate for step, rate in rates], expected, atol=1e-7)


def test_a_single_step_learns(tiny, tmp_path):
    out, err = run("train.py", "--fast", "--epochs", 1, "--seed", 1, "--batch-size", 70, cwd=tmp_path, data=tiny)
    import keras

    import train
    keras.utils.set_random_seed(1)
    before = train.create_model((32, 32, 3)).get_weights()
    after = keras.models.load_model(tmp_path / f"results/{name}.h5", compile=False).get_weights()
    assert (before[-1] == 0).all() and (after[-1] != 0).all(), "the last bias, which has no other initial values"


def test_long_runs_change_their_images(undisturbed, monkeypatch):
    import train
    for arguments, expected in ("--fast", False), ("--fast --epochs 3", False), ("--fast --epochs 4", True), \
            ("--fast --epochs 2 --augment", True), ("--epochs 30", False), ("--augment", True):
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments.split()])
        assert train.parse_args().augment == expected, arguments
    (trial, shown), = hparams_of(undisturbed / "logs" / name)
    assert shown["augment"] is True and shown["epochs"] == 4


def test_long_runs_have_dropout(capsys):
    import keras

    from support import fast
    for epochs, last in (1, 0), (10, 0), (20, 0.075), (30, 0.15), (100, 0.15):
        layers = [keras.layers.Dropout(0.25), keras.layers.Dropout(0.5)]
        fast.set_dropout(layers, epochs)
        assert [layer.rate for layer in layers] == [0, pytest.approx(last)]
        assert capsys.readouterr().out == ("  Dropout layers: off, the last one weaker\n" if last else
                                           "  Dropout layers: off\n")
    fast.set_dropout([], 30)
    assert capsys.readouterr().out == "  Dropout layers: off\n"


def test_the_networks_own_settings_come_back(load):
    """Of inner networks, too. The weights stay."""
    import keras
    from keras.layers import Conv2D, Dense, Dropout, Flatten

    from support import fast
    block = keras.Sequential([keras.Input((32, 32, 3)), Conv2D(8, 3), Dropout(0.5)])
    last = Dense(10, "softmax")
    model, written = prepared(load, block, Flatten(), Dense(16), Dropout(0.4), last, optimizer="sgd", run_eagerly=True,
                              steps_per_execution=3)
    described = model.get_config()
    inner = [*block.layers, *model.layers[1:-1]]
    assert {layer.dtype_policy.name for layer in inner} == {"mixed_bfloat16"}
    assert last.dtype_policy.name == "float32" and model.dtype_policy.name == "mixed_bfloat16"
    assert [layer.rate for layer in inner if isinstance(layer, Dropout)] == [0, 0]
    assert model.run_eagerly and model.steps_per_execution == 3 and callable(model.loss)
    values = np.linalg.svd(block.layers[0].kernel.numpy().reshape(27, 8), compute_uv=False)
    assert values == pytest.approx(0.4 * np.ones(8), rel=1e-3)
    weights = model.get_weights()
    fast.restore(model, written)
    assert {layer.dtype_policy.name for layer in [model, last, *inner]} == {"float32"}
    assert [layer.rate for layer in inner if isinstance(layer, Dropout)] == [0.5, 0.4]
    assert model.run_eagerly and model.steps_per_execution == 3
    assert type(model.optimizer) is keras.optimizers.SGD and model.loss == "sparse_categorical_crossentropy"
    assert all(np.array_equal(a, b) for a, b in zip(weights, model.get_weights()))
    assert model.get_config() != described


def test_layers_of_ones_own_stay_in_32_bits(load):
    """They may have other layers in them, or constants; and Keras' layers around them compute in 16 bits."""
    import keras
    import tensorflow as tf
    from keras.layers import Conv2D, Dense, Flatten

    class Block(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.inner = Conv2D(8, 3, padding="same")

        def call(self, images):
            return images + self.inner(images) * tf.constant(0.5)
    model, _ = prepared(load, Conv2D(8, 3), Block(), Conv2D(4, 3), Flatten(), Dense(10, "softmax"))
    history = model.fit(load()[0], steps_per_epoch=2, verbose=0).history
    assert np.isfinite(history["loss"][0])
    assert [layer.compute_dtype for layer in model.layers] == ["bfloat16", "float32", "bfloat16", "bfloat16", "float32"]


def test_a_network_without_a_softmax(load):
    import keras

    from support import fast
    model, _ = prepared(load, keras.layers.Flatten(), keras.layers.Dense(10),
                        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    scores = np.random.default_rng(0).normal(size=(5, 10)).astype(np.float32)
    found = model.loss(np.arange(5), scores)
    model.compile(loss="sparse_categorical_crossentropy")
    expected = fast.smoothed_loss(model)(np.arange(5), keras.ops.softmax(scores))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_another_loss_stays(load, capsys):
    import keras
    from keras.layers import Dense, Flatten

    def own(labels, outputs):
        return outputs[..., 0]
    ignoring = keras.losses.SparseCategoricalCrossentropy(ignore_class=3)
    for loss, last in ("binary_crossentropy", Dense(1, "sigmoid")), (own, Dense(10)), \
            (ignoring, Dense(10, "softmax")), ("sparse_categorical_crossentropy", Dense(1, "softmax")):
        model, _ = prepared(load, Flatten(), Dense(8), last, loss=loss)
        assert model.loss is loss
        assert "  Dropout layers: off\n  the network's own loss\n" in capsys.readouterr().out


def test_the_three_spellings_of_the_loss_are_known(load):
    import keras
    from keras.layers import Dense, Flatten
    answers = np.random.default_rng(0).random((5, 10)).astype(np.float32)
    answers /= answers.sum(axis=1, keepdims=True)
    losses = keras.losses
    for loss in "sparse_categorical_crossentropy", losses.sparse_categorical_crossentropy, \
            losses.SparseCategoricalCrossentropy():
        model, _ = prepared(load, Flatten(), Dense(10, "softmax"), loss=loss)
        right, all_classes = np.log(answers[range(5), range(5)]), np.log(answers).mean(axis=1)
        expected = -0.8 * right - 0.2 * all_classes
        np.testing.assert_allclose(model.loss(np.arange(5), answers), expected, rtol=1e-4)


unusual = """
import numpy as np


def wavy(images):
    return images * keras.ops.sigmoid(1.5 * images)


class Small(keras.regularizers.Regularizer):  # it is not registered
    def __call__(self, kernel):
        return 1e-4 * tf.reduce_sum(kernel ** 2)

    def get_config(self):
        return {}


class Own(keras.Model):
    def train_step(self, *arguments):
        return super().train_step(*arguments)


class Bias(keras.layers.Layer):  # it has no get_config()
    def __init__(self, size):
        super().__init__()
        self.bias = self.add_weight(shape=(size,))

    def call(self, values):
        return values + self.bias


class Watch(keras.callbacks.Callback):
    def __init__(self, model, frozen):
        super().__init__()
        self.theirs, self.frozen, self.before = model, frozen, np.array(frozen.kernel)

    def on_train_end(self, logs=None):
        print("the same model:", self.model is self.theirs)
        print("the same kernel:", np.array_equal(self.frozen.kernel, self.before))


def create_model("""
network = """    look = keras.layers.Normalization()
    look.adapt(np.random.default_rng(0).normal(100, 50, (500, 32, 32, 3)).astype("float32"))
    frozen = Conv2D(32, 3)
    adapter = Dense(32)
    model = Sequential([
        Input(input_shape),
        keras.layers.Rescaling(255),
        look,
        Conv2D(8, 3, kernel_regularizer=Small()),
        frozen,
        Activation(wavy),
        Bias(32),
        Flatten(),
        adapter,
        Dense(num_classes, activation="softmax"),
    ])
    frozen.kernel.trainable = False
    adapter.enable_lora(4)
    model = Own(model.inputs, model.outputs)
    model.summary()

    def loss(labels, outputs):  # it looks at the model
        return keras.losses.sparse_categorical_crossentropy(labels, outputs) + 0 * tf.reduce_sum(model.layers[-1].bias)
    model.compile(loss=loss, optimizer="adam", metrics=["accuracy"])
"""


def test_what_keras_cannot_copy_is_trained_and_saved(tmp_path, tiny):
    """An adapted layer, a frozen kernel, functions and classes of one's own without a description, a loss that looks at
    the model, LoRA; and a callback sees the model that create_model() has returned."""
    source = (root / "train.py").read_text(encoding="utf-8")
    own = source[source.index("    model = Sequential(["):source.index("    return model\n")]
    train = edited(tmp_path, ("def create_model(", unusual.strip("\n")), (own, network),
                   ("    callbacks = [tensorboard]\n", "    frozen = model.layers[4]\n"
                    "    callbacks = [tensorboard, Watch(model, frozen)]\n"),
                   ("    checkpoint.delete()\n", "    checkpoint.delete()\n    print('saved:', model.evaluate("
                    "ds_test, verbose=0)[1])\n    model.save_weights('results/all.weights.h5')\n"))
    out, err = run(train, "--fast", "--epochs", 8, "--batch-size", 14, "--seed", 1, cwd=tmp_path, data=tiny)
    assert "the same model: True" in out and "the same kernel: True" in out and err == ""
    assert "initial values: 1 of 3 layers" in out and "the network's own loss" in out
    last = float(out.split("val_accuracy: ")[-1].split()[0])
    assert float(out.split("saved: ")[1].split()[0]) == pytest.approx(last, abs=1e-4) and last > 0.3


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
    assert "Fast recipe: 4 epochs\n  images flipped, shifted by up to 2 pixels, 6x6 pixels hidden\n" in out
    assert "Muon" in out and "rise to 0.0027 and 0.0018" in out
    same_as_undisturbed(half, undisturbed)


def test_a_run_with_more_epochs_is_another_one(half, tiny):
    """Its learning rates would be others from the first step on."""
    before = (half / checkpoint).read_bytes()
    out, err = run("train.py", *options, "--epochs", 6, cwd=half, data=tiny, code=1)
    assert "epochs 4, not 6" in message(err) and out == "", "not refused at once"
    assert (half / checkpoint).read_bytes() == before


def test_other_lengths_and_batch_sizes_have_other_rates(load, capsys):
    from keras.layers import Dense, Flatten
    for epochs, batch_size, rates in (3, 64, "0.003 and 0.002,"), (3, 16, "0.0015 and 0.001,"), \
            (24, 64, "0.0015 and 0.001,"):
        prepared(load, Flatten(), Dense(8), Dense(10, "softmax"), epochs=epochs, batch_size=batch_size)
        assert f"rise to {rates}" in capsys.readouterr().out


def test_the_saved_model_has_the_tutorials_dropout_and_precision(undisturbed):
    from support.models import load_model
    model = load_model(undisturbed / f"results/{name}.h5")
    assert [layer.rate for layer in model.layers if hasattr(layer, "rate")] == [0.25, 0.25, 0.25, 0.5]
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32"} and model.count_params() == 2395434


@rare
@pytest.mark.parametrize("with_fast, policy", [(False, "float32"), (True, "float32"), (True, "mixed_bfloat16"),
                                          (True, "mixed_float16")])
def test_both_recipes_compile_for_gpus(with_fast, policy, load):
    """On a GPU, Keras compiles the training step with XLA by itself; here it is asked to."""
    import keras

    import train
    from support import fast
    ds_train, ds_test, info = load(batch_size=8)
    model = train.create_model((32, 32, 3))
    if with_fast:
        fast.prepare(model, load(batch_size=8)[0], 125, Namespace(epochs=1, batch_size=8, augment=False), policy)
    model.compile(model.optimizer, model.loss, metrics=["accuracy"], jit_compile=True, auto_scale_loss=False)
    before = model.get_weights()
    history = model.fit(ds_train, steps_per_epoch=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert all((old != new).any() for old, new in zip(before, model.get_weights()))
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == (policy == "mixed_float16")


@rare
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_a_model_trained_in_16_bits_is_like_any_other(policy, tiny, tmp_path):
    """The test chooses instead of the machine, since few have both; all else runs as it is."""
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
