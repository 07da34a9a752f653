"""A changed line in train.py or test.py does what it says, and a mistake in it is shown."""
import csv
import json
import re
import shutil
import signal
import tarfile

import h5py
import numpy as np
import pytest
from PIL import Image

from conftest import (
    checkpoint,
    curves,
    edited,
    in_one_go,
    interrupt,
    message,
    name,
    options,
    plain,
    posix,
    rare,
    root,
    run,
    size_and_colours,
    smaller,
    start,
    wait_for,
    wait_for_output,
)
from small_cifar10 import make_images


def imported(layer):
    """The change that imports one more layer."""
    return "from keras.layers import Activation", f"from keras.layers import {layer}, Activation"


def two_branches(join):
    """The changes that put a network with two branches, joined by this expression, in the place of the tutorial's."""
    network = f"""    inputs = Input(input_shape)
    a = Conv2D(32, (3, 3), padding="same")(inputs)
    b = Conv2D(32, (1, 1))(inputs)
    outputs = Dense(num_classes, activation="softmax")(Flatten()({join}))
    model = Model(inputs, outputs)
    model.summary()
"""
    return [imported("Add"), ("import Sequential", "import Model, Sequential"), ("    model.summary()\n", network)]


edits = {  # key: an edit; values: the changes, and what --fast says that it leaves out
    "normalization": ([imported("BatchNormalization, SeparableConv2D"),
                       ('padding="same"),\n', 'padding="same", use_bias=False),\n        BatchNormalization(),\n'),
                       ("Conv2D(128, (3, 3)", "SeparableConv2D(128, (3, 3)")], ""),
    "more filters": ([("Conv2D(128", "Conv2D(64"), ("Conv2D(64", "Conv2D(96"), ("Conv2D(32", "Conv2D(64")],
                     "or has more than 54 filters"),
    "separable first": ([imported("SeparableConv2D"), ("Conv2D(32", "SeparableConv2D(32")],
                        "no whitening: the first layer with weights is not an ordinary convolution"),
    "no softmax, other dials": ([
                    ("\nbatch_size = 64\n", "\nbatch_size = 32\n"), ("\nepochs = 30\n", "\nepochs = 2\n"),
                    ('Dense(num_classes, activation="softmax")', "Dense(num_classes)"),
                    ('loss="sparse_categorical_crossentropy"',
                     "loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)")], ""),
    "two branches": (two_branches("Add()([a, b])"), ""),
    "no input layer": ([("        Input(input_shape),\n", "")], ""),
    "an adapted layer": ([("    model = Sequential([", "    look = tf.keras.layers.Normalization()\n    look.adapt("
                          "tf.random.stateless_uniform((500, 32, 32, 3), (1, 2)))\n    model = Sequential(["),
                          ("        Input(input_shape),\n", "        Input(input_shape),\n        look,\n")],
                         "no whitening: the first layer with weights is not an ordinary convolution"),
    "odd filters, no dropout": ([("Conv2D(32", "Conv2D(33"), ("        Dropout(0.25),\n", "")], ""),
}
twice = """
import sys
sys.path[0] = {folder!r}
import {script}
for arguments in {arguments}:
    sys.argv = ["{script}.py", *arguments]
    {script}.main()
"""


def run_twice(script, *arguments, folder, data):
    """Run the edited script twice in one process, which is somebody's then; start it, and return its Script."""
    program = folder / "program.py"
    program.write_text(twice.format(folder=str(folder), script=script, arguments=arguments))
    return start(program, cwd=folder, data=data, fast=True)


@pytest.mark.parametrize("edit", [edit if edit == "two branches" else pytest.param(edit, marks=rare) for edit in edits])
def test_edited_networks_and_dials_take_fast_resume_and_are_tested(edit, tmp_path, tiny):
    changes, left_out = edits[edit]
    if edit != "more filters":  # which is about the sizes
        edited(tmp_path, smaller)
    edited(tmp_path, *changes)
    options = ["--seed", "1"] if "dials" in edit else ["--epochs", "2", "--seed", "1"]
    script = run_twice("train", ["--epochs", "1", "--fast", "--name", "fast"], options, folder=tmp_path, data=tiny)
    assert wait_for(tmp_path / checkpoint, script, size=1_000_000), script.output()
    out, err = map(plain, script.kill())
    assert "Fast recipe" in out and left_out in out
    assert "the first layer whitens the images" in out or left_out
    out, err = run(tmp_path / "train.py", *options, cwd=tmp_path, data=tiny)
    assert err == "" and "Resuming after epoch" in out and "Epoch 2/2" in out
    script = run_twice("test", ["results/fast.h5"], [], folder=tmp_path, data=tiny)
    out, err = map(plain, script.wait())
    assert script.returncode == 0 and out.count("Test accuracy: ") == 2, err
    fast, row = (list(csv.DictReader((tmp_path / f"logs/{run}/epochs.csv").open()))[-1] for run in ("fast", name))
    assert float(re.findall(r"loss: ([\d.e-]+)", out)[-1]) == pytest.approx(float(row["val_loss"]), abs=2e-4)
    accuracies = [float(number) / 100 for number in re.findall(r"Test accuracy: ([\d.]+)", out)]
    assert accuracies == pytest.approx([float(fast["val_accuracy"]), float(row["val_accuracy"])], abs=1e-6)


own_layer = """class Scale(tf.keras.layers.Layer):
    def call(self, images):
        return images * 2


def create_model("""


@rare
def test_layers_of_ones_own(tmp_path, tiny):
    """The advice helps in both cases."""
    register = "@keras.saving.register_keras_serializable()"
    train = edited(tmp_path, ("def create_model(", own_layer),
                   ("        Flatten(),\n", "        Scale(),\n        Flatten(),\n"))
    out, err = run(train, *in_one_go, cwd=tmp_path, data=tiny)
    assert f"a layer class of your own, write\n{register} above it" in out and err == ""
    edited(tmp_path, ("class Scale", f"{register}\nclass Scale"))
    out, err = run(train, *in_one_go, cwd=tmp_path, data=tiny)
    assert "cannot" not in out and err == ""
    out, err = run(tmp_path / "test.py", cwd=tmp_path, data=tiny)
    assert "Test accuracy: " in out and err == ""
    edited(tmp_path, ("        Scale(),\n", "        tf.keras.layers.Lambda(lambda images: images * 2),\n"))
    out, err = run(train, *in_one_go, cwd=tmp_path, data=tiny)
    assert "if it has a Lambda, make that such a class" in out and err == ""


@rare
def test_a_network_that_keras_cannot_open_again_from_hdf5(tmp_path, tiny):
    train = edited(tmp_path, *two_branches("a + b"))
    out, err = run(train, *in_one_go, cwd=tmp_path, data=tiny)
    assert "Keras cannot open this network again from a .h5 file" in out and "replace .h5 by .keras" in out
    out, err = run(tmp_path / "test.py", cwd=tmp_path, data=tiny, code=1)
    assert "cannot be loaded as a Keras model" in message(err)
    edited(tmp_path, ('{args.name}.h5"', '{args.name}.keras"'))
    out, err = run(train, *in_one_go, cwd=tmp_path, data=tiny)
    assert f"The model is in results/{name}.keras" in out.replace("\\", "/") and "cannot" not in out and err == ""
    out, err = run(tmp_path / "test.py", f"results/{name}.keras", cwd=tmp_path, data=tiny)
    assert "Test accuracy: " in out and err == ""


@pytest.fixture(scope="module")
def cifar100(tmp_path_factory):
    """TFDS_DATA_DIR with 200 training and 100 test images, prepared by TFDS's own cifar100 builder."""
    folder = tmp_path_factory.mktemp("cifar100")
    made = folder / "cifar-100-binary"
    made.mkdir()
    for file, count in ("train.bin", 20), ("test.bin", 10):
        images, labels = make_images(count, seed=0)
        planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        fine = np.arange(len(images), dtype=np.uint8)[:, None] % 100
        made.joinpath(file).write_bytes(np.concatenate([labels[:, None], fine, planes], axis=1).tobytes())
    made.joinpath("fine_label_names.txt").write_text("\n".join(f"fine{number}" for number in range(100)))
    made.joinpath("coarse_label_names.txt").write_text("\n".join(f"coarse{number}" for number in range(20)))
    archive = folder / "downloads/manual/cifar-100-binary.tar.gz"
    archive.parent.mkdir(parents=True)
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(made, made.name)
    program = folder / "program.py"
    program.write_text(f"import pathlib, sys\nsys.path.append({str(root / 'tests')!r})\nimport small_cifar10\n"
                       "small_cifar10.register(pathlib.Path(sys.argv[1]), 'cifar100')\n"
                       "import tensorflow_datasets as tfds\ntfds.builder('cifar100').download_and_prepare()\n")
    script = start(program, archive, cwd=folder, data=folder)
    out, err = script.wait()
    assert script.returncode == 0, err
    return folder


@rare
def test_another_data_set(cifar100, tmp_path):
    train = edited(tmp_path, smaller, ('dataset = "cifar10"', 'dataset = "cifar100"'),
                   ("num_classes = 10\n", "num_classes = 100\n"))
    out, err = run(train, "--fast", "--epochs", 1, cwd=tmp_path, data=cifar100)
    assert "cifar100 is in" in out and "(None, 100)" in out and err == ""
    out, err = run(tmp_path / "test.py", cwd=tmp_path, data=cifar100, code=1)
    assert "into the 10 classes of test.py" in message(err)
    names = re.search(r"categories = \{.*?\n\}", (tmp_path / "test.py").read_text(), re.S)[0]
    edited(tmp_path, (names, "categories = {label: f'fine{label}' for label in range(100)}"), script="test.py")
    out, err = run(tmp_path / "test.py", "--report", cwd=tmp_path, data=cifar100)
    assert err == "" and re.search(r"^Predicted label: fine\d+\nTrue label: fine\d+$", out, re.M)
    assert re.search(r"^fine99 ", out, re.M)


@pytest.mark.parametrize("change, reason", [
    (('"sparse_categorical_crossentropy"', '"categorical_crossentropy"'), "shape"),
    (("    # construct the model\n", "    open('missing')\n"), "FileNotFoundError"),
    pytest.param(('split="test"', 'split="tset"'), "tset", marks=rare),
    (('dataset = "cifar10"', 'dataset = "cifar11"'), "cifar11"),
    pytest.param(('dataset = "cifar10"', 'dataset = "cifar-10"'), "cifar-10", marks=rare),
], ids=str)
def test_a_mistake_in_the_code_keeps_its_traceback(change, reason, tmp_path, tiny):
    script = start(edited(tmp_path, smaller, change), *in_one_go, cwd=tmp_path, data=tiny)
    out, err = script.wait()
    assert script.returncode == 1
    assert err.count("Traceback") >= 1 and reason in err and "train.py" in err and "Delete" not in err


def with_callbacks(folder, *callbacks):
    """Put the project into a folder, with these callbacks added; return the path of train.py."""
    added = ", ".join(f"keras.callbacks.{callback}" for callback in callbacks)
    return edited(folder, smaller, ("    callbacks = [tensorboard]\n", f"    callbacks = [tensorboard, {added}]\n"))


@rare
def test_a_learners_own_callbacks_get_no_epoch_twice(tmp_path, tiny):
    """The rate falls in each epoch but the first, for two reasons, and the best epoch is the first one."""
    weights = {}
    for folder in tmp_path / "whole", tmp_path / "resumed":
        folder.mkdir()
        train = with_callbacks(folder, "ReduceLROnPlateau(patience=1, min_delta=10, factor=0.5)",
                               "LearningRateScheduler(lambda epoch, rate: rate * 0.5 ** (epoch > 0))",
                               "ModelCheckpoint('results/best-{epoch}.keras', monitor='loss', mode='max', "
                               "save_best_only=True)")
        if folder.name == "resumed":
            script = start(train, *options, cwd=folder, data=tiny)
            wait_for_output(script, "Epoch 4/4")
            script.kill()
            first = (folder / "results/best-1.keras").read_bytes()
        out, err = run(train, *options, cwd=folder, data=tiny)
        assert err == "" and ("Resuming after epoch 3" in out) == (folder.name == "resumed")
        with h5py.File(folder / f"results/{name}.h5") as file:
            dense = file["model_weights/dense"]
            weights[folder.name] = [dense[key][()] for key in sorted(found(dense))]
    assert len(weights["whole"]) == 2
    for whole, resumed in zip(weights["whole"], weights["resumed"]):
        assert np.array_equal(whole, resumed)
    assert (folder / "results/best-1.keras").read_bytes() == first
    for folder in weights:
        rates = curves(tmp_path / folder / "logs" / name)["train/epoch_learning_rate"]
        assert rates[3] == (3, pytest.approx(0.001 / 2**5))


converted = "    image = tf.image.convert_image_dtype(image, tf.float32)\n"
three_values = """    image = tf.cast(image, tf.uint8)
    return image, label, tf.ones_like(label, tf.float32)
"""
four_values = """    return ds_train, ds_test, info, ds_test
"""
with_weights = """    model.compile(loss="sparse_categorical_crossentropy", optimizer="adam", metrics=["accuracy"],
                  weighted_metrics=["accuracy"], loss_weights=[0.5])
"""


@rare
def test_fast_takes_only_what_it_needs_from_ones_own_functions(tmp_path, tiny):
    """Whole numbers and sample weights from preprocess_image(), a further data set from load_data()."""
    train = edited(tmp_path, smaller, imported("Rescaling"),
                   ("        Input(input_shape),\n", "        Input(input_shape),\n        Rescaling(1 / 255),\n"),
                   (f"{converted}    return image, label\n", three_values),
                   ("    return ds_train, ds_test, info\n", four_values),
                   ("ds_test, info = load_data(args", "ds_test, info, more = load_data(args"),
                   (re.search(r"    model\.compile\(.*\n", (root / "train.py").read_text())[0], with_weights))
    out, err = run(train, "--fast", "--augment", "--epochs", 1, cwd=tmp_path, data=tiny)
    assert "the first layer whitens the images\n" in out and "  smoothed labels\n" in out and err == ""
    with h5py.File(tmp_path / f"results/{name}.h5") as file:
        training = json.loads(file.attrs["training_config"])
    assert training["loss_weights"] == [0.5]
    accuracy = {"class_name": "SparseCategoricalAccuracy", "config": {"name": "accuracy"}}
    assert training["metrics"] == training["weighted_metrics"] == [accuracy]


def found(group):
    """The paths of the arrays in a group of an HDF5 file."""
    paths = []
    group.visititems(lambda path, item: paths.append(path) if hasattr(item, "shape") else None)
    return paths


@rare
def test_early_stopping_begins_again_when_a_run_is_resumed(tmp_path, tiny):
    stopping = "EarlyStopping(monitor='loss', mode='max', patience=9, restore_best_weights=True, verbose=1)"
    train = with_callbacks(tmp_path, stopping)
    script = start(train, *options, cwd=tmp_path, data=tiny)
    wait_for_output(script, "Epoch 3/4")
    script.kill()
    out, err = run(train, *options, cwd=tmp_path, data=tiny)
    done = int(re.search(r"Resuming after epoch (\d)", out)[1])
    best = int(re.search(r"end of the best epoch: (\d)", out)[1])
    assert done >= 2 and best > done and err == ""


def test_callbacks_and_metrics_of_ones_own_with_fast(tmp_path, tiny):
    """A callback may save a model where the last one will be; this is no earlier run."""
    train = with_callbacks(tmp_path, "ModelCheckpoint('results/best.keras', save_best_only=True)",
                           f"ModelCheckpoint('results/{name}.h5')")
    own = "def missed(labels, outputs):\n    return 1 - tf.reduce_max(outputs, axis=-1)\n\n\ndef create_model("
    edited(tmp_path, ("def create_model(", own),
           ('metrics=["accuracy"]', 'metrics=[keras.metrics.SparseCategoricalAccuracy(name="acc"), missed, '
            'keras.metrics.SparseTopKCategoricalAccuracy(3, name="top")]'))
    out, err = run(train, "--fast", "--epochs", 1, "--seed", 1, cwd=tmp_path, data=tiny)
    assert "The earlier run" not in out
    assert err == "" and re.search(r" - acc: [\d.]+ - loss: [\d.]+ - missed: [\d.]+ - top: [\d.]+ - val_acc: ", out)
    assert size_and_colours(tmp_path / f"results/{name}.png")[0] == (3000, 600), "not four panels"
    with h5py.File(tmp_path / f"results/{name}.h5") as file:
        training = file.attrs["training_config"]
    assert '"acc"' in training and "missed" in training
    for model in "results/best.keras", f"results/{name}.h5":
        out, err = run(tmp_path / "test.py", model, cwd=tmp_path, data=tiny)
        assert "Test accuracy: " in out and err == ""


shape = 'input_shape=info.features["image"].shape'
preprocessing = {  # key: an edit; values: the changes of train.py
    "standardized": [(converted, converted + "    image = (image - (0.49, 0.48, 0.45)) / (0.25, 0.24, 0.26)\n")],
    "grey": [(converted, converted + "    image = tf.image.rgb_to_grayscale(image)\n"),
             (shape, "input_shape=(32, 32, 1)")],
    "larger": [(converted, converted + "    image = tf.image.resize(image, (64, 64))\n"),
               (shape, "input_shape=(64, 64, 3)")],
}


@rare
@pytest.mark.parametrize("edit", preprocessing)
def test_own_pictures_are_prepared_as_the_training_images_are(edit, tmp_path, tiny):
    train = edited(tmp_path, smaller, *preprocessing[edit])
    out, err = run(train, "--fast", "--augment", "--epochs", 1, cwd=tmp_path, data=tiny)
    assert err == "" and ("more than 18 filters" if edit == "grey" else "the first layer whitens the images") in out
    program = tmp_path / "program.py"
    program.write_text(expected_answers)
    out, err = run(program, cwd=tmp_path, data=tiny)
    expected = dict(re.findall(r"(?m)^(\d\.png) ([\d.]+)$", out))
    assert len(expected) == 10
    out, err = run(tmp_path / "test.py", "--report", cwd=tmp_path, data=tiny)
    assert err == "" and "Test accuracy: " in out
    out, err = run(tmp_path / "test.py", "--image", *expected, cwd=tmp_path, data=tiny)
    answers = dict(re.findall(r"^(\d\.png): \w+ \(\w+ ([\d.]+)%", out, re.M))
    assert err == "" and answers.keys() == expected.keys()
    for file, probability in answers.items():  # "larger" is resized twice, which is not quite the same
        assert float(probability) == pytest.approx(float(expected[file]), abs=1 if edit == "larger" else 0.02)


expected_answers = f"""
import support.start, keras, train
from PIL import Image
import tensorflow_datasets as tfds
def main():  # TensorFlow 2.16 complains of global variables at the end
    stored = tfds.load("cifar10", split="test", as_supervised=True).batch(10)
    images, labels = next(stored.as_numpy_iterator())
    ds_train, ds_test, info = train.load_data(10)
    model = keras.models.load_model("results/{name}.h5", compile=False)
    answers = model.predict(next(iter(ds_test))[0], verbose=0)
    for number, answer in enumerate(answers):
        Image.fromarray(images[number]).save(f"{{number}}.png")
        print(f"{{number}}.png {{100 * answer.max():.2f}}")
main()
"""


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """TFDS_DATA_DIR with a data set that has one split, of 100 grey images of 28x28 pixels."""
    folder = tmp_path_factory.mktemp("digits")
    program = folder / "program.py"
    program.write_text("import sys, numpy as np, tensorflow as tf, tensorflow_datasets as tfds\n"
                       "images = np.random.default_rng(0).integers(0, 256, (100, 28, 28, 1)).astype('uint8')\n"
                       "tfds.dataset_builders.store_as_tfds_dataset(\n"
                       "    name='digits', version='1.0.0', data_dir=sys.argv[1],\n"
                       "    split_datasets={'train': tf.data.Dataset.from_tensor_slices(\n"
                       "        {'image': images, 'label': np.arange(100) % 10})},\n"
                       "    features=tfds.features.FeaturesDict({'image': tfds.features.Image(shape=(28, 28, 1)),\n"
                       "        'label': tfds.features.ClassLabel(num_classes=10)}))\n")
    script = start(program, folder, cwd=folder, data=folder)
    out, err = script.wait()
    assert script.returncode == 0, err
    description = folder / "digits/1.0.0/dataset_info.json"
    keys = {"tuple": {"items": [{"featureKey": "image"}, {"featureKey": "label"}]}}
    description.write_text(json.dumps({**json.loads(description.read_text()), "supervisedKeys": keys}))
    return folder


@rare
def test_grey_images_of_another_size_and_parts_of_a_split(digits, tmp_path):
    """And test images that are filtered, so that TensorFlow does not know how many there are."""
    first = "        .batch(batch_size)  # neither"
    train = edited(tmp_path, smaller, ('dataset = "cifar10"', 'dataset = "digits"'),
                   ('split="train"', 'split="train[:80%]"'), ('split="test"', 'split="train[80%:]"'),
                   (first, "        .filter(lambda image, label: label < 9)\n" + first))
    out, err = run(train, "--epochs", 1, "--batch-size", 20, cwd=tmp_path, data=digits)
    assert "(None, 28, 28, 32)" in out and err == ""
    out, err = run(tmp_path / "test.py", "--report", cwd=tmp_path, data=digits)
    assert re.search(r"^all +\d+ +18 ", out, re.M) and err == ""
    Image.new("RGB", (100, 50), "red").save(tmp_path / "red.png")
    out, err = run(tmp_path / "test.py", "--image", "red.png", cwd=tmp_path, data=digits)
    assert "red.png: " in out and err == ""


def own_classes(folder, *classes):
    """Edit the project in a folder as README says for one's own classes, and make pictures of these classes."""
    text = (root / "README.md").read_text(encoding="utf-8").split("## Your own classes")[1]
    for_load_data, for_test = re.findall(r"(?:^    .*\n)+", text, re.M)[:2]
    source = (root / "train.py").read_text(encoding="utf-8")
    loading = re.search(r"    folder = download\.prepare.*?(?=\n    settings =)", source, re.S)[0]
    train = edited(folder, smaller, ("num_classes = 10", f"num_classes = {len(classes)}"), (loading, for_load_data))
    names = re.search(r"categories = \{.*?\n\}\n", (root / "test.py").read_text(), re.S)[0]
    edited(folder, (names, re.sub("(?m)^    ", "", for_test)), script="test.py")
    random = np.random.default_rng(0)
    for split, count in ("train", 45), ("test", 7):
        for number, label in enumerate(classes):
            pictures = folder / "pictures" / split / label
            pictures.mkdir(parents=True)
            for picture in range(count):
                width, height = random.integers(20, 200, 2)
                pixels = random.normal(100, 30, (height, width, 3)) + 100 * np.eye(5)[number, :3]
                suffix = ("jpg", "png")[picture % 2]
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(pictures / f"{picture}.{suffix}")
    return train


@rare
@pytest.mark.parametrize("classes", [("dog", "rainbow fish"), ("a", "b", "c", "d", "e")])
def test_ones_own_classes(classes, tmp_path):
    train = own_classes(tmp_path, *classes)
    fast = ["--fast", "--augment", "--name", "fast"]
    for added in [fast] if len(classes) == 2 else [[], fast]:
        script = start(train, "--epochs", 3, *added, cwd=tmp_path, data=tmp_path / "no data")
        wait_for_output(script, "Epoch 3/3")
        script.kill()
        out, err = run(train, "--epochs", 3, *added, cwd=tmp_path, data=tmp_path / "no data")
        assert "Resuming after epoch 2 of 3" in out and err == ""
    assert "the first layer whitens the images" in out and f"(None, {len(classes)})" in out
    assert out.count(f"45 of {classes[0]}, 45 of {classes[1]}") == 1, "the pictures were read more than once"
    out, err = run(tmp_path / "test.py", "results/fast.h5", "--report", cwd=tmp_path, data=tmp_path)
    assert re.search(rf"^all +\d+ +{7 * len(classes)} ", out, re.M) and err == ""
    picture = f"pictures/test/{classes[1]}/1.png"
    out, err = run(tmp_path / "test.py", "results/fast.h5", "--image", picture, cwd=tmp_path, data=tmp_path)
    assert re.match(rf"{picture}: ({'|'.join(classes)}) \(", out) and err == ""
    out, err = run(train, "--batch-size", 46 * len(classes), cwd=tmp_path, data=tmp_path, code=1)
    assert "larger than the number of training images" in message(err)


@rare
def test_ones_own_classes_learn_and_new_pictures_count(tmp_path):
    """In two colours, they are told apart; the second run in a process sees a picture that has come."""
    own_classes(tmp_path, "dog", "fish")
    options = ["--epochs", "6", "--batch-size", "15", "--fast"]
    program = tmp_path / "program.py"
    program.write_text(twice.format(folder=str(tmp_path), script="train", arguments=[options, options]).replace(
        "    train.main()\n", "    train.main()\n    open('pictures/train/dog/new.jpg', 'w').close()\n"))
    script = start(program, cwd=tmp_path, data=tmp_path, fast=True)
    out, err = map(plain, script.wait())
    assert script.returncode == 0, err
    assert out.count("45 of dog, 45 of fish") == 2 and out.count("new.jpg: cannot be read") == 1
    assert "val_accuracy: 1.0" in out


def things_to_try():
    """README's table of them: what to change, as for edited(), and the command's options."""
    text = (root / "README.md").read_text(encoding="utf-8").split("## Change it")[1]
    source = (root / "train.py").read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^\| (.*?) \| `python train\.py (.*?)` \|", text)
    for change, given in rows:
        old, *new = re.findall(r"`(.*?)`", change)
        lines = re.findall(f"(?m)^.*{re.escape(old)}.*\n", source)
        yield [(old, *new)] if new else [(line, "") for line in set(lines)], given.split()


def figures(folder, data, changes, options):
    """All figures of one epoch after these changes."""
    folder.mkdir()
    out, err = run(edited(folder, *changes), *options, "--epochs", 1, "--seed", 1, cwd=folder, data=data)
    assert err == "" and "The model is in" in out
    return (folder / f"logs/{name}/epochs.csv").read_text()


@pytest.mark.parametrize("number", [0, *(pytest.param(number, marks=rare) for number in range(1, 6))])
def test_things_to_try(number, tmp_path, data):
    things = list(things_to_try())
    assert len(things) == 6
    changes, options = things[number]
    assert figures(tmp_path / "a", data, changes, options) != figures(tmp_path / "b", data, [], options)


def test_without_the_checkpoint_an_earlier_model_is_kept_too(tmp_path, tiny):
    train = edited(tmp_path, smaller, ("callbacks=callbacks", "callbacks=[tensorboard]"))
    run(train, *in_one_go, cwd=tmp_path, data=tiny)
    before = (tmp_path / f"results/{name}.h5").read_bytes()
    out, err = run(train, *in_one_go, cwd=tmp_path, data=tiny)
    dated = re.search(rf"^  (results/{name}-\d+-\d+\.h5)$", out, re.M)[1]
    assert (tmp_path / dated).read_bytes() == before and not (tmp_path / checkpoint).exists()


def test_another_number_of_classes_is_refused_before_the_training(tmp_path, tiny):
    train = edited(tmp_path, smaller, ("num_classes = 10", "num_classes = 12"))
    out, err = run(train, *in_one_go, cwd=tmp_path, data=tiny, code=1)
    assert "The network has 12 outputs, but cifar10 has 10 classes: airplane, automobile, " in message(err)
    assert "Set num_classes = 10 in train.py." in err and "Epoch" not in out


@rare
def test_training_further_as_the_readme_of_the_results_says(tmp_path, tiny):
    """As it is written there, but for two steps."""
    text = (root / "results/README.md").read_text(encoding="utf-8").split("## Train a model further")[1]
    lines = re.search(r"(?m)^    from .*\n(?:    .*\n|\n)+", text)[0]
    edited(tmp_path)
    program = tmp_path / "program.py"
    program.write_text(re.sub("(?m)^    ", "", lines).replace("781", "2"))
    (tmp_path / "results").mkdir()
    shutil.copy(root / "results/fast.h5", tmp_path / "results")
    script = start(program, cwd=tmp_path, data=tiny)
    out, err = map(plain, script.wait())
    assert script.returncode == 0 and "val_accuracy: " in out, err


@posix
def test_a_learners_own_answer_to_ctrl_c(tmp_path, tiny):
    """An `except KeyboardInterrupt` around `fit` works. A Ctrl-C that is lost, as in TensorFlow, needs a second one."""
    import keras
    fit = re.search(r"    model\.fit\(.*?\n    \)\n", (root / "train.py").read_text(encoding="utf-8"), re.S)[0]
    tried = "    try:\n" + re.sub("(?m)^", "    ", fit)[:-4]
    saving = "    except KeyboardInterrupt:\n        print('saving what there is')\n"
    train = edited(tmp_path, smaller, (fit, tried + saving))
    script = start(train, "--epochs", 300, "--fast", cwd=tmp_path, data=tiny)
    wait_for_output(script, "Epoch 2/300")
    out, err = interrupt(script)
    assert script.returncode == 0 and "saving what there is" in out and "The model is in" in out and err == ""
    assert (tmp_path / checkpoint).exists(), "the run could not be resumed"
    assert keras.models.load_model(tmp_path / f"results/{name}.h5").optimizer.name == "adam"
    lost = "    except KeyboardInterrupt:\n        print('lost')\n        import time\n        time.sleep(300)\n"
    train = edited(tmp_path, (saving, lost))
    script = start(train, "--epochs", 300, "--name", "other", cwd=tmp_path, data=tiny)
    wait_for_output(script, "Epoch 2/300")
    script.send_signal(signal.SIGINT)
    wait_for_output(script, "lost")
    out, err = interrupt(script)
    assert script.returncode == 130
    assert re.fullmatch(r"\nStopped in epoch \d+ of 300; to resume, run the same command again\.\n", err)


@rare
def test_a_network_that_is_too_large_for_any_memory(tmp_path, tiny):
    train = edited(tmp_path, ("Dense(1024)", "Dense(10**11)"))
    out, err = run(train, *in_one_go, cwd=tmp_path, data=tiny, code=1)
    assert "not enough memory" in message(err)
