"""Model files of others open here."""
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from conftest import message, run, write_model

tests = Path(__file__).parent


@pytest.mark.parametrize("file", ["tutorial-tf20.h5", "tutorial-tf24.h5", "tutorial-tf215.h5"])
def test_the_tutorials_own_models(file):
    """As TensorFlow 2.0, 2.4 and 2.15 saved them; the figures are their own TensorFlow's."""
    from support.models import load_model
    model = load_model(tests / "data" / file)
    images = (np.arange(2 * 32 * 32 * 3) % 251 / 250).astype("float32").reshape(2, 32, 32, 3)
    first, second = model.predict(images, verbose=0)
    assert [first.argmax(), second.argmax()] == [7, 6]
    assert [first[7], first[6]] == pytest.approx([0.9924, 0.0076], abs=1e-4)
    assert [second[6], second[5]] == pytest.approx([0.9999, 0.0001], abs=1e-4)


def test_another_network_of_keras_2(tmp_path):
    """Its SeparableConv2D, as TensorFlow 2.4 describes it, has settings that Keras 3 does not take."""
    import keras

    from support.models import load_model
    path = write_model(tmp_path / "model.h5", "L.SeparableConv2D(4, 3)", "L.Flatten()", "L.Dense(10)")
    images = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    expected = keras.models.load_model(path, compile=False).predict(images, verbose=0)
    with h5py.File(path, "r+") as file:
        model = json.loads(file.attrs["model_config"])
        for layer in model["config"]["layers"]:
            if layer["class_name"] == "SeparableConv2D":
                layer["config"].update(kernel_initializer=None, kernel_regularizer=None, kernel_constraint=None)
        file.attrs["model_config"] = json.dumps(model)
    with pytest.raises(TypeError):
        keras.models.load_model(path, compile=False)
    assert np.array_equal(load_model(path).predict(images, verbose=0), expected)


def test_a_network_of_tensorflow_2_0_in_another(tmp_path):
    """There, a network has no input layer: its first layer carries the shape."""
    import keras

    from support import portable
    from support.models import load_model
    inner = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Conv2D(4, 3)])
    model = keras.Sequential([keras.Input((32, 32, 3)), inner, keras.layers.Flatten(), keras.layers.Dense(10)])
    model.compile(loss="sparse_categorical_crossentropy")
    model.save(tmp_path / "new.h5")
    portable.write(tmp_path / "new.h5", tmp_path / "old.h5")
    with h5py.File(tmp_path / "old.h5", "r+") as file:
        description = json.loads(file.attrs["model_config"])
        outer_layers = description["config"]["layers"]
        outer_layers.pop(0)
        inner_layers = outer_layers[0]["config"]["layers"]
        input_layer = inner_layers.pop(0)
        inner_layers[0]["config"]["batch_input_shape"] = input_layer["config"]["batch_input_shape"]
        file.attrs["model_config"] = json.dumps(description)
    with pytest.raises(ValueError):
        keras.models.load_model(tmp_path / "old.h5", compile=False)
    images = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    again = load_model(tmp_path / "old.h5")
    assert np.array_equal(again.predict(images, verbose=0), model.predict(images, verbose=0))


def test_mixed_precision_of_keras_2_and_other_suffixes(small_model, tmp_path):
    import keras

    from support.models import load_model
    path = shutil.copy(small_model, tmp_path / "model.hdf")
    with h5py.File(path, "r+") as file:
        description = json.loads(file.attrs["model_config"])
        for layer in description["config"]["layers"][1:]:
            layer["config"]["dtype"] = {"class_name": "Policy", "config": {"name": "mixed_float16"}}
        file.attrs["model_config"] = json.dumps(description)
    images = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    expected = keras.models.load_model(small_model, compile=False).predict(images, verbose=0)
    assert np.allclose(load_model(Path(path)).predict(images, verbose=0), expected, atol=0.01)


def test_a_tutorials_own_model_is_tested(tmp_path, tiny):
    file = shutil.copy(tests / "data/tutorial-tf20.h5", tmp_path)
    Path(file).chmod(0o444)
    before = Path(file).read_bytes()
    out, err = run("test.py", "tutorial-tf20.h5", cwd=tmp_path, data=tiny)
    assert "Test accuracy: " in out and err == "" and Path(file).read_bytes() == before


def test_scores_are_told_from_probabilities():
    """By the last layer, in a network inside another one, too."""
    import keras

    from support.models import gives_scores
    layers = keras.layers
    for last, scores in ((layers.Dense(10), True), (layers.Dense(10, activation="softmax"), False),
                         (layers.Softmax(), False), (layers.Activation("softmax"), False),
                         (keras.Sequential([layers.Dense(10), layers.Softmax()]), False),
                         (keras.Sequential([layers.Dense(10)]), True)):
        assert gives_scores(keras.Sequential([keras.Input((10,)), last])) == scores


def test_keras_own_format(small_model, tmp_path, tiny):
    import keras
    keras.models.load_model(small_model, compile=False).save(tmp_path / "model.keras")
    out, err = run("test.py", "model.keras", cwd=tmp_path, data=tiny)
    assert "Test accuracy: " in out and err == ""


def test_weights_alone(small_model, tmp_path):
    import keras

    from support.messages import UserError
    from support.models import load_model
    model = keras.models.load_model(small_model, compile=False)
    model.save_weights(tmp_path / "new.weights.h5")
    with h5py.File(tmp_path / "old.h5", "w") as file, h5py.File(small_model) as whole:  # as Keras 2 saves them
        for layer in whole["model_weights"]:
            whole.copy(f"model_weights/{layer}", file)
    for file in "new.weights.h5", "old.h5":
        with pytest.raises(UserError) as error:
            load_model(tmp_path / file)
        assert "only weights" in message(str(error.value)) and str(tmp_path / file) in str(error.value)
