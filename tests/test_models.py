"""Model files: ours open anywhere, those of others open here."""
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from conftest import message, name, run, start, write_model

tests = Path(__file__).parent
new_words = ["module", "registered_name", "build_config", "batch_shape", "optional", "ragged", "groups", "DTypePolicy",
             "input_axes", "output_axes", "quantization_config"]  # which Keras 2, or Keras 3 before 3.15, does not know


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


def test_a_tutorials_own_model_is_tested(tmp_path, tiny):
    file = shutil.copy(tests / "data/tutorial-tf20.h5", tmp_path)
    Path(file).chmod(0o444)
    before = Path(file).read_bytes()
    out, err = run("test.py", "tutorial-tf20.h5", cwd=tmp_path, data=tiny)
    assert "Test accuracy: " in out and err == "" and Path(file).read_bytes() == before


def test_the_saved_model_is_described_in_words_of_every_keras(trained):
    with h5py.File(trained / f"results/{name}.h5") as file:
        assert set(file) == {"model_weights"}
        for key in "model_config", "training_config":  # TensorFlow 2.0 wants bytes
            assert h5py.check_string_dtype(file.attrs.get_id(key).dtype).encoding == "ascii"
        description = file.attrs["model_config"]
        training = json.loads(file.attrs["training_config"])
    assert not [word for word in new_words if f'"{word}"' in description]
    assert '"batch_input_shape": [null, 32, 32, 3]' in description and '"dtype": "float32"' in description
    assert training["optimizer_config"]["class_name"] == "Adam"
    assert set(training["optimizer_config"]["config"]) <= {"name", "learning_rate"}
    assert {"sample_weight_mode", "weighted_metrics", "loss_weights", "loss", "metrics"} <= set(training)


def test_the_saved_model_is_evaluated_and_trained_on_without_this_project(trained, data, tmp_path):
    """A new interpreter opens it with load_model alone, counts the same accuracy, and trains it further with Adam."""
    program = tmp_path / "program.py"
    program.write_text("""import sys, numpy, keras, tensorflow as tf, tensorflow_datasets as tfds
model = keras.models.load_model(sys.argv[1])
test = tfds.load("cifar10", split="test", as_supervised=True).batch(50)
test = test.map(lambda image, label: (tf.image.convert_image_dtype(image, tf.float32), label))
print("accuracy", model.evaluate(test, verbose=0)[1])
before = model.get_weights()
history = model.fit(test, epochs=2, verbose=0).history
assert all((old != new).any() for old, new in zip(before, model.get_weights()))
print(type(model.optimizer).__name__, sorted(history), model.count_params(), "train" in sys.modules)
""")
    out, err = start(program, trained / f"results/{name}.h5", cwd=tmp_path, data=data).wait()
    tested, err = run("test.py", trained / f"results/{name}.h5", cwd=tmp_path, data=data)
    accuracy = float(tested.split("Test accuracy: ")[1].split()[0]) / 100
    lines = out.strip().split("\n")
    assert float(lines[0].split()[1]) == pytest.approx(accuracy, abs=1e-6)
    assert lines[1] == "Adam ['accuracy', 'loss'] 2395434 False"


@pytest.mark.parametrize("layers", [
    ["L.Conv2D(4, 5, use_bias=False)", "L.BatchNormalization()", "L.SeparableConv2D(4, 3)",
     "L.GlobalAveragePooling2D()"],
    ["L.RandomFlip('horizontal', seed=1)", "L.Flatten()"],
    ["L.Conv2D(6, 3, groups=3, kernel_regularizer='l2')", "L.LeakyReLU(0.1)", "L.Flatten()"]], ids=str)
def test_an_edited_network_keeps_its_weights_and_answers(layers, tmp_path):
    import keras

    from support import models
    source = write_model(tmp_path / "source.h5", *layers, "L.Dense(10, activation='softmax')", compiled=True)
    models.write_portable(source, tmp_path / "target.h5")
    images = np.random.default_rng(0).random((4, 32, 32, 3), np.float32)
    before, after = keras.models.load_model(source), keras.models.load_model(tmp_path / "target.h5")
    assert np.array_equal(before.predict(images, verbose=0), after.predict(images, verbose=0))
    assert before.get_config() == after.get_config() and after.optimizer is not None
    with h5py.File(source) as old, h5py.File(tmp_path / "target.h5") as new:
        weights = []
        old["model_weights"].visititems(lambda path, item: weights.append(path) if hasattr(item, "dtype") else None)
        assert weights and all(np.array_equal(old["model_weights"][path], new["model_weights"][path])
                               for path in weights)


def test_a_loss_for_scores_is_described_in_words_of_every_keras(tmp_path):
    import keras

    from support import models
    model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(10)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    model.save(tmp_path / "source.h5")
    models.write_portable(tmp_path / "source.h5", tmp_path / "target.h5")
    with h5py.File(tmp_path / "target.h5") as file:
        training = json.loads(file.attrs["training_config"])
    assert training["loss"]["class_name"] == "SparseCategoricalCrossentropy"
    assert training["loss"]["config"]["from_logits"] and "ignore_class" not in training["loss"]["config"]
    assert training["metrics"][0]["class_name"] == "SparseCategoricalAccuracy"
    assert keras.models.load_model(tmp_path / "target.h5").loss.from_logits


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
