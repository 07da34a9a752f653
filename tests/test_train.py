"""The pair, whole: the network, the input pipeline, a run of train.py and of test.py, TensorBoard."""
import csv
import re

import numpy as np
import pytest

from conftest import as_floats, curves, keys, name, options, root, run, source, take


def test_network(capsys):
    import keras

    import train
    model = train.create_model((32, 32, 3))
    assert "2,395,434" in capsys.readouterr().out
    block = ["Conv2D", "Activation", "Conv2D", "Activation", "MaxPooling2D", "Dropout"]
    assert [type(layer).__name__ for layer in model.layers] == 3 * block + [
        "Flatten", "Dense", "Activation", "Dropout", "Dense"]
    counts = [layer.count_params() for layer in model.layers if layer.count_params()]
    assert counts == [896, 9248, 18496, 36928, 73856, 147584, 2098176, 10250]
    assert model.count_params() == 2395434
    assert [layer.rate for layer in model.layers if hasattr(layer, "rate")] == [0.25, 0.25, 0.25, 0.5]
    assert [layer.activation.__name__ for layer in model.layers if type(layer).__name__ == "Activation"] == [
        "relu"] * 7
    assert model.layers[-1].activation.__name__ == "softmax" and model.loss == "sparse_categorical_crossentropy"
    assert (model.input_shape, model.output_shape) == ((None, 32, 32, 3), (None, 10))
    assert type(model.optimizer) is keras.optimizers.Adam
    assert float(model.optimizer.learning_rate) == np.float32(0.001)


def stored(split):
    """The images of a split in the order of the files, after `load`."""
    import tensorflow_datasets as tfds

    import train
    builder = tfds.builder("cifar10", data_dir=train.data_dir)
    images, labels = take(builder.as_dataset(split, as_supervised=True).batch(100), 1000)
    return keys(as_floats(images), labels)


def seeded(load, seed):
    """The training stream of a run with this seed."""
    import keras
    keras.utils.set_random_seed(seed)
    return load()[0]


def test_training_stream(load):
    ds_train = seeded(load, 3)
    images, labels = next(ds_train.as_numpy_iterator())
    assert images.dtype == np.float32 and images.shape == (64, 32, 32, 3) and images.min() >= 0 and images.max() <= 1
    assert labels.dtype.kind == "i" and labels.shape == (64,)
    stream = keys(*take(seeded(load, 3), 3 * 960))
    passes = [stream[start:start + 960] for start in (0, 960, 1920)]  # 15 batches of the 1,000 images
    expected = set(source(100, seed=0))
    for number, images in enumerate(passes):
        assert set(images) < expected and len(set(images)) == 960, f"pass {number + 1} shows an image twice"
    assert len({tuple(images) for images in passes}) == 3, "two passes are in the same order"
    assert len({frozenset(images) for images in passes}) == 3, "the same images sit out in two passes"
    position = {image: index for index, image in enumerate(stored("train"))}
    for images in passes:  # an image may go anywhere
        moves = [abs(position[image] - index) for index, image in enumerate(images)]
        assert 250 < np.mean(moves) < 420 and max(moves) > 800  # 333 on average for a uniform permutation of 1,000
    assert keys(*take(seeded(load, 3), 960)) == passes[0]
    assert keys(*take(seeded(load, 4), 960)) != passes[0]
    assert keys(*take(load()[0], 960)) != keys(*take(load()[0], 960)), "without a seed every run has its own order"


def test_skipping_whole_epochs_gives_the_later_ones(load):
    whole = keys(*take(seeded(load, 3), 3 * 960))
    assert keys(*take(seeded(load, 3).skip(2 * 15), 960)) == whole[1920:]


def test_every_image_is_decoded_once(load, monkeypatch):
    import tensorflow as tf
    import tensorflow_datasets as tfds
    count = tf.Variable(0, dtype=tf.int64)
    decode = tfds.features.Image.decode_example

    def counted(self, *arguments, **options):
        count.assign_add(1)
        return decode(self, *arguments, **options)
    monkeypatch.setattr(tfds.features.Image, "decode_example", counted)
    take(load()[0], 3000)
    assert count.numpy() == 1000


def test_no_pipeline_is_tuned(load):
    """Else the end of a training may have to wait; for how long is not asserted, since that is a matter of luck."""
    from support import augment
    ds_train, ds_test, info = load()
    for dataset in ds_train, ds_test, augment.stream(ds_train, 20, 30), ds_train.skip(3), ds_test.shuffle(7):
        assert dataset.options().autotune.enabled is False


def test_test_stream(load):
    ds_test = load()[1]
    assert int(ds_test.cardinality()) == 7  # 400 images
    images, labels = take(ds_test, 1000)
    assert len(images) == 400 and sorted(keys(images, labels)) == source(40, seed=1)
    assert keys(images, labels) == stored("test"), "not in their own order"
    again = take(ds_test, 1000)
    assert (again[0] == images).all() and (again[1] == labels).all()


def test_tutorials_own_calls_still_work(load, tmp_path):
    import train
    ds_train, ds_test, info = load()
    model = train.create_model(input_shape=info.features["image"].shape)
    tensorboard = train.TensorBoard(log_dir=tmp_path / "logs")
    model.fit(ds_train, epochs=1, validation_data=ds_test, verbose=1,
              steps_per_epoch=info.splits["train"].num_examples // train.batch_size,
              validation_steps=info.splits["test"].num_examples // train.batch_size, callbacks=[tensorboard])
    model.save(tmp_path / "model.h5")
    loss, accuracy = model.evaluate(ds_test, steps=info.splits["test"].num_examples // train.batch_size, verbose=0)
    assert loss > 0 and 0 <= accuracy <= 1
    sample_images, sample_labels = next(iter(ds_test))
    assert model.predict(sample_images[:1]).shape == (1, train.num_classes) and 0 <= int(sample_labels[0]) <= 9


def test_train_prints_what_the_tutorial_shows(trained, data):
    out = (trained / "out.txt").read_text(encoding="utf-8")
    lines = out.split("\n")
    assert lines[0] == f"cifar10 is in {(data / 'cifar10' / '3.0.2').as_posix()}"
    assert lines[1].startswith("Training on: ")
    assert "Total params: 2,395,434" in out
    assert re.findall(r"^Epoch (\d)/2$", out, re.M) == ["1", "2"]
    assert len(re.findall(r"^31/31 - \d+s - \d+ms/step - accuracy: [\d.]+ - loss: [\d.]+ - val_accuracy: [\d.]+ - "
                          r"val_loss: [\d.]+$", out, re.M)) == 2
    assert out.strip().split("\n")[-4:] == [
        f"The curves are in results/{name}.png", f"The model is in results/{name}.h5",
        f"Next: python {(root / 'test.py').as_posix()} results/{name}.h5", "and:  tensorboard --logdir=logs"]
    assert len(lines) < 75, "something else is printed, too"
    assert {path.name for path in (trained / "results").iterdir()} == {f"{name}.h5", f"{name}.png"}


def test_it_learns_and_logs_it(trained):
    out = (trained / "out.txt").read_text(encoding="utf-8")
    log_dir = trained / "logs" / name
    found = curves(log_dir)
    for key in "train/epoch_loss", "train/epoch_accuracy", "validation/epoch_loss", "validation/epoch_accuracy":
        assert [step for step, value in found[key]] == [0, 1]
    assert found["validation/epoch_accuracy"][-1][1] > 0.5
    rows = list(csv.DictReader((log_dir / "epochs.csv").open()))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    for column, key in (("loss", "train/epoch_loss"), ("val_accuracy", "validation/epoch_accuracy")):
        assert [float(row[column]) for row in rows] == pytest.approx([value for step, value in found[key]], rel=1e-6)
        assert f"{column}: {float(rows[-1][column]):.4f}" in out


def test_same_seed_same_numbers(undisturbed, tiny, tmp_path):
    again, err = run("train.py", *options, "--name", "again", cwd=tmp_path, data=tiny)
    assert f"Next: python {(root / 'test.py').as_posix()} results/again.h5" in again
    assert (tmp_path / "logs/again/epochs.csv").read_text() == (undisturbed / f"logs/{name}/epochs.csv").read_text()
    assert (tmp_path / "results/again.h5").read_bytes() == (undisturbed / f"results/{name}.h5").read_bytes()
