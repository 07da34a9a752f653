"""Model files of others open here, or the reason is given."""
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from conftest import message, name, root, run, write_model

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


def test_a_tutorials_own_model_is_tested(tmp_path, tiny):
    """It is read-only, and has an unusual suffix."""
    file = Path(shutil.copy(tests / "data/tutorial-tf20.h5", tmp_path / "tutorial.hdf"))
    file.chmod(0o444)
    before = file.read_bytes()
    out, err = run("test.py", "tutorial.hdf", cwd=tmp_path, data=tiny)
    assert "Test accuracy: " in out and err == "" and file.read_bytes() == before


def test_scores_become_probabilities(tmp_path):
    """A softmax is added if there is none at the end, in a network inside another one, too."""
    import keras

    from support.models import load_model
    layers = keras.layers
    images = np.random.default_rng(0).random((5, 32, 32, 3), np.float32)
    for last, scores in ([layers.Dense(10)], True), ([layers.Dense(10, activation="softmax")], False), \
            ([layers.Dense(10), layers.Softmax()], False), ([layers.Dense(10), layers.Activation("softmax")], False), \
            ([keras.Sequential([keras.Input((3072,)), layers.Dense(10), layers.Softmax()])], False), \
            ([keras.Sequential([keras.Input((3072,)), layers.Dense(10)])], True), \
            ([layers.Dense(10, activation="softmax"), layers.Activation("linear", dtype="float32")], False), \
            ([layers.Dense(10, activation="softmax"), layers.Flatten()], False):
        model = keras.Sequential([keras.Input((32, 32, 3)), layers.Flatten(), *last])
        model.save(tmp_path / "model.h5")
        expected = model.predict(images, verbose=0)
        if scores:
            expected = np.exp(expected) / np.exp(expected).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(load_model(tmp_path / "model.h5").predict(images, verbose=0), expected, atol=1e-5)


def test_keras_own_format_and_another_network(small_model, tmp_path, tiny):
    import keras
    keras.models.load_model(small_model, compile=False).save(tmp_path / "model.keras")
    out, err = run("test.py", "model.keras", cwd=tmp_path, data=tiny)
    assert "Test accuracy: " in out and err == ""


def test_no_model(tmp_path):
    """It is said before any data are downloaded."""
    out, err = run("test.py", cwd=tmp_path, data=tmp_path / "no data", code=1)
    assert f"results/{name}.h5" in message(err) and out == ""
    assert f"python {(root / 'train.py').as_posix()} --fast" in err


def refusal(path):
    """What test.py says of a model file, without a process for each file."""
    import tensorflow as tf

    from support import models
    from support.messages import UserError
    images = tf.data.Dataset.from_tensor_slices((np.zeros((3, 32, 32, 3)), range(3))).batch(2)
    with pytest.raises(UserError) as error:
        model = models.load_model(path)
        models.check_classes(model, dict.fromkeys(range(10)))
        models.check_images(model, images)
    return message(str(error.value))


def test_bad_model_files(small_model, tmp_path):
    whole = small_model.read_bytes()
    for content in b"", b"garbage" * 5000, whole[:-2000], whole[:len(whole) // 2], None:
        path = tmp_path / "model.h5"
        path.mkdir() if content is None else path.write_bytes(content)
        assert str(path) in refusal(path)
        if content is not None:
            path.unlink()
    out, err = run("test.py", path, cwd=tmp_path, data=tmp_path / "no data", code=1)
    assert path.as_posix() in message(err) and out == ""


def test_weights_alone(small_model, tmp_path):
    import keras
    model = keras.models.load_model(small_model, compile=False)
    model.save_weights(tmp_path / "new.weights.h5")
    with h5py.File(tmp_path / "old.h5", "w") as file, h5py.File(small_model) as whole:  # as Keras 2 saves them
        for layer in whole["model_weights"]:
            whole.copy(f"model_weights/{layer}", file)
    for file in "new.weights.h5", "old.h5":
        text = refusal(tmp_path / file)
        assert "only weights" in text and str(tmp_path / file) in text


@pytest.mark.parametrize("layers, shape, reason", [
    (["L.Flatten()", "L.Dense(10)"], (28, 28, 1), "not for these test images: its input is (None, 28, 28, 1)"),
    (["L.Dense(10)"], (3072,), "not for these test images"),
    (["L.Flatten()", "L.Dense(100)"], (32, 32, 3), "does not classify into the 10 classes"),
    (["L.Conv2D(10, 3)"], (32, 32, 3), "does not classify into the 10 classes"),
    (["L.Flatten()", "L.Dense(1, 'sigmoid')"], (32, 32, 3), 'It should end in Dense(10, activation="softmax")')])
def test_another_kind_of_model(layers, shape, reason, tmp_path):
    path = write_model(tmp_path / "model.h5", *layers, shape=shape)
    assert reason in refusal(path)


def test_a_model_for_images_of_any_size(tmp_path):
    import tensorflow as tf

    from support import models
    path = write_model(tmp_path / "model.h5", "L.Conv2D(10, 3, activation='softmax')", "L.GlobalAveragePooling2D()",
                       shape=(None, None, 3))
    images = tf.data.Dataset.from_tensor_slices((np.zeros((3, 32, 32, 3)), range(3))).batch(2)
    model = models.load_model(path)
    models.check_images(model, images)
    assert len(model.layers) == 2, "a second softmax"


def test_a_model_with_code_inside_is_refused(tmp_path):
    mark = tmp_path / "the code ran"
    path = write_model(tmp_path / "model.h5", f"L.Lambda(lambda x: (open({str(mark)!r}, 'w').close(), x)[1])",
                       "L.Flatten()", "L.Dense(10)")
    mark.unlink()  # making the model has run it
    out, err = run("test.py", path, cwd=tmp_path, data=tmp_path, code=1)
    assert "Lambda" in message(err) and not mark.exists()
