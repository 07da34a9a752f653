"""Model files that are saved here open anywhere."""
import json
import shutil

import h5py
import numpy as np
import pytest

from conftest import name, run, start


def test_the_saved_model_is_described_in_words_of_every_keras(trained):
    """Settings that have their default values are left out: an older Keras does not know them all."""
    with h5py.File(trained / f"results/{name}.h5") as file:
        assert set(file) == {"model_weights"}, "the optimizer's state, which Keras cannot read again"
        for key in "model_config", "training_config":  # TensorFlow 2.0 wants bytes
            assert h5py.check_string_dtype(file.attrs.get_id(key).dtype).encoding == "ascii"
        model = json.loads(file.attrs["model_config"])
        training = json.loads(file.attrs["training_config"])
    first, convolution, *others, last = model["config"]["layers"]
    assert first == {"class_name": "InputLayer", "config": {"name": "input_layer",
                                                            "batch_input_shape": [None, 32, 32, 3]}}
    assert convolution == {"class_name": "Conv2D", "config": {"name": "conv2d", "filters": 32, "kernel_size": [3, 3],
                                                              "padding": "same"}}
    assert last == {"class_name": "Dense", "config": {"name": "dense_1", "units": 10, "activation": "softmax"}}
    assert training["optimizer_config"]["class_name"] == "Adam"
    assert set(training["optimizer_config"]["config"]) <= {"name"}
    assert training["metrics"] == [{"class_name": "SparseCategoricalAccuracy", "config": {"name": "accuracy"}}]
    assert {"sample_weight_mode", "weighted_metrics", "loss_weights", "loss"} <= set(training)


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
    model = shutil.copy(trained / f"results/{name}.h5", tmp_path)
    out, err = start(program, model, cwd=tmp_path, data=data).wait()
    tested, err = run("test.py", model, cwd=tmp_path, data=data)
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
    joined = layers.Concatenate()([layers.Conv2D(4, 3, padding="same")(inputs), layers.Conv2D(4, 1)(inputs)])
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(layers.Flatten()(joined)))


new_words = ["module", "registered_name", "build_config", "batch_shape", "DTypePolicy", "input_axes",
             "quantization_config", "groups"]  # which Keras 2, or an old Keras 3, does not know
edits = {  # key: an edit; values: the network that it makes, and a word that its description needs
    "normalization": (lambda of: sequential(
        of.Conv2D(4, 5, use_bias=False), of.BatchNormalization(), of.SeparableConv2D(4, 3),
        of.GlobalAveragePooling2D()), '"use_bias": false'),
    "other settings": (lambda of: sequential(
        of.Rescaling(2.0), of.Conv2D(6, 3, kernel_regularizer="l2", kernel_initializer="he_normal"),
        of.LeakyReLU(negative_slope=0.1), of.Flatten()), '"negative_slope": 0.1'),
    "two branches": (two_branches, '"module"'),  # as Keras says it
    "hard sigmoid": (lambda of: sequential(of.Flatten(), of.Dense(9, activation="hard_sigmoid")),
                     '"module"'),  # in Keras 2, another function, so that it shall not open there
}


@pytest.mark.parametrize("edit", edits)
def test_an_edited_network_keeps_its_weights_and_answers(edit, tmp_path):
    import keras

    from support import portable
    make, word = edits[edit]
    model = make(keras.layers)
    model.compile(loss="sparse_categorical_crossentropy", optimizer="adam", metrics=["accuracy"])
    model.save(tmp_path / "model.h5")
    portable.rewrite(model, tmp_path / "model.h5")
    again = keras.models.load_model(tmp_path / "model.h5")
    assert again.get_config() == model.get_config()
    images = np.random.default_rng(0).random((4, 32, 32, 3), np.float32)
    assert np.array_equal(again.predict(images, verbose=0), model.predict(images, verbose=0))
    with h5py.File(tmp_path / "model.h5") as file:
        description = file.attrs["model_config"]
    assert word in description
    assert word == '"module"' or not [word for word in new_words if f'"{word}"' in description]


def test_a_schedule_of_the_learners_own_does_not_prevent_saving(tmp_path):
    import keras

    from support import portable

    class Half(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return 0.5

        def get_config(self):
            return {}

    model = sequential(keras.layers.Flatten())
    model.compile(keras.optimizers.SGD(Half()), "sparse_categorical_crossentropy")
    with portable.saving(model, str(tmp_path / "model.h5")) as path:
        model.save(path)
    assert keras.models.load_model(tmp_path / "model.h5", compile=False).get_config() == model.get_config()


def test_other_ways_to_save_do_no_harm(tmp_path):
    """The tutorial's own line, with a path of its own; and a model without its optimizer."""
    import keras

    from support import portable
    model = sequential(keras.layers.Flatten())
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    for path in tmp_path / "model.h5", tmp_path / "other.h5":
        with portable.saving(model, tmp_path / "model.h5"):
            model.save(path)
        assert keras.models.load_model(path).get_config() == model.get_config()
    with portable.saving(model, tmp_path / "third.h5") as path:
        model.save(path, include_optimizer=False)
    assert keras.models.load_model(tmp_path / "third.h5").get_config() == model.get_config()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.h5", "other.h5", "third.h5"]


def test_other_losses_and_learning_rates_are_kept(tmp_path):
    import keras

    from support import portable
    model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(10)])
    decay = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    for rate in 0.002, decay:
        model.compile(keras.optimizers.SGD(rate, momentum=0.9),
                      keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
        model.save(tmp_path / "model.h5")
        portable.rewrite(model, tmp_path / "model.h5")
        again = keras.models.load_model(tmp_path / "model.h5")
        assert again.loss.from_logits and again.optimizer.get_config() == model.optimizer.get_config()
        with h5py.File(tmp_path / "model.h5") as file:
            training = json.loads(file.attrs["training_config"])
        assert training["loss"] == {"class_name": "SparseCategoricalCrossentropy", "config": {"from_logits": True}}
        assert training["metrics"][0]["class_name"] == "SparseCategoricalAccuracy"
