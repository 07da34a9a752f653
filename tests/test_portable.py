"""Model files that are saved here open anywhere."""
import json

import h5py
import numpy as np
import pytest

from conftest import name, run, start

words_of_keras3_15 = ["input_axes", "output_axes", "quantization_config", "renorm"]  # which Keras 3.3 does not know
new_words = ["module", "registered_name", "build_config", "batch_shape", "optional", "ragged", "DTypePolicy",
             "negative_slope", "keras_history", *words_of_keras3_15]  # which Keras 2 does not know


def test_the_saved_model_is_described_in_words_of_every_keras(trained):
    with h5py.File(trained / f"results/{name}.h5") as file:
        assert set(file) == {"model_weights"}
        for key in "model_config", "training_config":  # TensorFlow 2.0 wants bytes
            assert h5py.check_string_dtype(file.attrs.get_id(key).dtype).encoding == "ascii"
        description = file.attrs["model_config"]
        training = json.loads(file.attrs["training_config"])
    assert not [word for word in [*new_words, "groups"] if f'"{word}"' in description]
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


def sequential(*layers):
    import keras
    return keras.Sequential([keras.Input((32, 32, 3)), *layers, keras.layers.Dense(10, activation="softmax")])


def two_branches(layers):
    import keras
    inputs = keras.Input((32, 32, 3))
    normalized = layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same")(inputs))
    joined = layers.Concatenate()([normalized, layers.Dropout(0.5)(layers.Conv2D(4, 1)(inputs))])
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(layers.Flatten()(joined)))


def branch(layers):
    import keras
    inputs = keras.Input((32, 32, 3))
    return keras.Model(inputs, layers.BatchNormalization()(layers.Conv2D(4, 3)(inputs)))


def sequential_inside(layers):
    """TensorFlow 2 would read it for ever in the words of Keras 2."""
    import keras
    inputs = keras.Input((32, 32, 3))
    inner = keras.Sequential([keras.Input((32, 32, 3)), layers.Conv2D(4, 3)])
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(layers.Flatten()(inner(inputs))))


edits = {  # key: an edit; values: the network that it makes, and a word that its description needs
    "normalization": (lambda of: sequential(
        of.Conv2D(4, 5, use_bias=False), of.BatchNormalization(), of.SeparableConv2D(4, 3),
        of.GlobalAveragePooling2D()), '"use_bias": false'),
    "flips": (lambda of: sequential(of.RandomFlip("horizontal", seed=1), of.Flatten()), '"seed": 1'),
    "rescaling": (lambda of: sequential(of.Rescaling(2.0), of.Flatten()), '"Rescaling"'),
    "leaky": (lambda of: sequential(of.Conv2D(6, 3, groups=3), of.LeakyReLU(0.1), of.Flatten()), '"alpha": 0.1'),
    "regularizers": (lambda of: sequential(
        of.Conv2D(4, 3, kernel_regularizer="l2"), of.Conv2D(4, 3, kernel_regularizer="l1"), of.Flatten()), '"L1L2"'),
    "initial values": (lambda of: sequential(
        of.Conv2D(4, 3, kernel_initializer="he_normal"), of.Conv2D(4, 3, kernel_initializer="orthogonal"),
        of.Flatten()), '"orthogonal"'),
    "two branches": (two_branches, '"Model"'),
    "a network inside": (lambda of: sequential(branch(of), of.Flatten()), '"registered_name"'),
    "a network inside one with branches": (sequential_inside, '"registered_name"'),
    "an activation that Keras 2 does not know": (lambda of: sequential(
        of.Conv2D(4, 3, activation=of.LeakyReLU(0.2)), of.Flatten()), '"registered_name"'),
    "an activation that is another one in Keras 2": (lambda of: sequential(
        of.Conv2D(4, 3, activation="hard_sigmoid"), of.Flatten()), '"registered_name"'),
}


@pytest.mark.parametrize("edit", edits)
def test_an_edited_network_keeps_its_weights_and_answers(edit, tmp_path):
    import keras

    from support import portable
    source, target = tmp_path / "source.h5", tmp_path / "target.h5"
    make, word = edits[edit]
    model = make(keras.layers)
    model.compile(loss="sparse_categorical_crossentropy", optimizer="adam", metrics=["accuracy"])
    model.save(source)
    portable.write(source, target)
    images = np.random.default_rng(0).random((4, 32, 32, 3), np.float32)
    labels = np.arange(4)
    before, after = keras.models.load_model(source), keras.models.load_model(target)
    assert np.array_equal(before.predict(images, verbose=0), after.predict(images, verbose=0))
    assert before.evaluate(images, labels, verbose=0) == after.evaluate(images, labels, verbose=0)
    assert len(before.layers) == len(after.layers)
    assert np.isfinite(after.fit(images, labels, verbose=0).history["loss"]).all()
    with h5py.File(source) as old, h5py.File(target) as new:
        weights = []
        old["model_weights"].visititems(lambda path, item: weights.append(path) if hasattr(item, "dtype") else None)
        assert weights and all(np.array_equal(old["model_weights"][path], new["model_weights"][path])
                               for path in weights)
        description = new.attrs["model_config"]
    unknown = words_of_keras3_15 if word == '"registered_name"' else new_words
    assert word in description and not [other for other in unknown if f'"{other}"' in description]


def test_a_loss_for_scores_is_described_in_words_of_every_keras(tmp_path):
    import keras

    from support import portable
    model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(10)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    model.save(tmp_path / "source.h5")
    portable.write(tmp_path / "source.h5", tmp_path / "target.h5")
    with h5py.File(tmp_path / "target.h5") as file:
        training = json.loads(file.attrs["training_config"])
    assert training["loss"]["class_name"] == "SparseCategoricalCrossentropy"
    assert training["loss"]["config"]["from_logits"] and "ignore_class" not in training["loss"]["config"]
    assert training["metrics"][0]["class_name"] == "SparseCategoricalAccuracy"
    assert keras.models.load_model(tmp_path / "target.h5").loss.from_logits
