"""Model files of others open here, or the reason is given."""
import json
import os
import shutil
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from conftest import message, name, rare, root, run, run_after, write_model

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
    """A softmax is added if there is none at the end, in a network inside another one, too; to sigmoids, it is not."""
    import keras

    from support.models import load_model
    layers = keras.layers
    images = np.random.default_rng(0).random((5, 32, 32, 3), np.float32)
    for last, scores in ([layers.Dense(10)], True), ([layers.Dense(10, activation="softmax")], False), \
            ([layers.Dense(10), layers.Softmax()], False), ([layers.Dense(10), layers.Activation("softmax")], False), \
            ([keras.Sequential([keras.Input((3072,)), layers.Dense(10), layers.Softmax()])], False), \
            ([keras.Sequential([keras.Input((3072,)), layers.Dense(10)])], True), \
            ([layers.Dense(10, activation="softmax"), layers.Activation("linear", dtype="float32")], False), \
            ([layers.Dense(10, activation="sigmoid")], False), \
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


def test_the_newest_model_is_suggested(small_model, tmp_path, monkeypatch):
    """If a run is stopped in its first epoch, that is the earlier one of the same name, with the date."""
    from support import models
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    for number, file in enumerate(["b.h5", "a-20261128-120000.h5", "c.h5"]):
        shutil.copy(small_model, f"results/{file}")
        os.utime(f"results/{file}", (number % 2, number % 2))
    assert "a-20261128-120000.h5" in models.missing(Path("results/a.h5"))


def refusal(path):
    """What test.py says of a model file, without a process for each file."""
    import tensorflow as tf

    from support import checks, models
    from support.errors import UserError
    images = tf.data.Dataset.from_tensor_slices((np.zeros((3, 32, 32, 3)), range(3))).batch(2)
    with pytest.raises(UserError) as error:
        model = models.load_model(path)
        checks.check_classes(model, dict.fromkeys(range(10)))
        checks.check_images(model, images)
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
    (["L.Flatten()", "L.Dense(1, 'sigmoid')"], (32, 32, 3), 'It should end in Dense(..., activation="softmax")')])
def test_another_kind_of_model(layers, shape, reason, tmp_path):
    path = write_model(tmp_path / "model.h5", *layers, shape=shape)
    assert reason in refusal(path)


def test_a_model_with_two_outputs(tmp_path):
    import keras
    inputs = keras.Input((32, 32, 3))
    flat = keras.layers.Flatten()(inputs)
    keras.Model(inputs, [keras.layers.Dense(10)(flat), keras.layers.Dense(3)(flat)]).save(tmp_path / "model.h5")
    assert "does not classify into the 10 classes" in refusal(tmp_path / "model.h5")


def test_a_model_for_images_of_any_size(tmp_path):
    import tensorflow as tf

    from support import checks, models
    path = write_model(tmp_path / "model.h5", "L.Conv2D(10, 3, activation='softmax')", "L.GlobalAveragePooling2D()",
                       shape=(None, None, 3))
    images = tf.data.Dataset.from_tensor_slices((np.zeros((3, 32, 32, 3)), range(3))).batch(2)
    model = models.load_model(path)
    checks.check_images(model, images)
    assert len(model.layers) == 2, "a second softmax"


def change(path, edit):
    """Change the description of the network in a model file: edit(layers), the list of them."""
    if path.suffix == ".h5":
        with h5py.File(path, "r+") as file:
            network = json.loads(file.attrs["model_config"])
            edit(network["config"]["layers"])
            file.attrs["model_config"] = json.dumps(network)
        return
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    network = json.loads(members["config.json"])
    edit(network["config"]["layers"])
    members["config.json"] = json.dumps(network)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def change_weights(path, edit):
    """Change the weights in a model file: edit(file), an open h5py.File."""
    if path.suffix == ".h5":
        with h5py.File(path, "r+") as file:
            edit(file)
        return
    with zipfile.ZipFile(path) as archive:
        archive.extractall(path.parent / "parts")
    with h5py.File(path.parent / "parts/model.weights.h5", "r+") as file:
        edit(file)
    with zipfile.ZipFile(path, "w") as archive:
        for part in (path.parent / "parts").iterdir():
            archive.write(part, part.name)


def kernel_in(file):
    """The path of the kernel in an open file of weights."""
    found = []
    file.visititems(lambda name, part: found.append(name) if getattr(part, "shape", None) == (3072, 10) else None)
    return found[0]


def link_to(part):
    """An edit of the weights: a part of the path of the kernel, counted from its end, is a link into another file."""
    def edit(file):
        path = "/".join(kernel_in(file).split("/")[:part])
        del file[path]
        file[path] = h5py.ExternalLink("victim.h5", path)
    return edit


def external_storage(file):
    path = kernel_in(file)
    del file[path]
    file.create_dataset(path, (3072, 10), "float32", external=[("victim.bin", 0, h5py.h5f.UNLIMITED)])


def virtual(file):
    path = kernel_in(file)
    del file[path]
    layout = h5py.VirtualLayout((3072, 10), "float32")
    layout[:] = h5py.VirtualSource("victim.h5", path, (3072, 10))
    file.create_virtual_dataset(path, layout)


def huge_weight(file):
    path = kernel_in(file)
    del file[path]
    file.create_dataset(path, (9_000_000, 10_000), "float32", chunks=True, compression="gzip")


elsewhere = {"a link": link_to(None), "a link in the middle": link_to(-1), "a link at the top": link_to(1),
             "external storage": external_storage, "a virtual dataset": virtual, "335 GB": huge_weight}


@pytest.fixture
def evil(small_model, tmp_path, request):
    """A model file to be changed, and beside it the files that it must not read."""
    import keras
    path = tmp_path / f"evil{request.param}"
    model = keras.models.load_model(small_model, compile=False)
    model.save(path)
    model.set_weights([np.full_like(values, 7) for values in model.get_weights()])
    model.save(tmp_path / f"victim{request.param}")
    if request.param == ".keras":
        with zipfile.ZipFile(tmp_path / "victim.keras") as archive:
            (tmp_path / "victim.h5").write_bytes(archive.read("model.weights.h5"))
    (tmp_path / "victim.bin").write_bytes(bytes(3072 * 10 * 4))
    return path


both = pytest.mark.parametrize("evil", [".h5", ".keras"], indirect=True)
peak = """import atexit, resource
atexit.register(lambda: print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))"""


def refused(path, reason):
    """Assert that test.py refuses a model file, in a line or two, and in bounded memory."""
    if sys.platform == "linux":
        out, err = run_after(peak, "test.py", path, cwd=path.parent, data=path.parent, code=1)
        assert int(out.split()[-1]) < 2_000_000, "over 2 GB of memory"
    else:
        out, err = run("test.py", path, cwd=path.parent, data=path.parent, code=1)
    assert path.as_posix() in message(err) and reason in err and len(err.strip().split("\n")) <= 2, err


@rare
@both
@pytest.mark.parametrize("kind", elsewhere)
def test_weights_that_are_elsewhere_are_refused(kind, evil):
    change_weights(evil, elsewhere[kind])
    refused(evil, "Not allowed: H5 " if evil.suffix == ".h5" else "cannot be loaded as a Keras model")


@rare
@pytest.mark.parametrize("evil", [".h5"], indirect=True)
def test_all_weights_that_are_elsewhere_are_refused(evil):
    with h5py.File(evil, "r+") as file:
        del file["model_weights"]
        file["model_weights"] = h5py.ExternalLink("victim.h5", "model_weights")
    refused(evil, "Not allowed: H5 file with ExternalLink")


def write_saved_model(folder, mark):
    """Save a SavedModel that writes a file when it is called."""
    import tensorflow as tf
    module = tf.Module()

    @tf.function(input_signature=[tf.TensorSpec((None, 32, 32, 3))])
    def serve(images):
        tf.io.write_file(str(mark), "")
        return images
    module.serve = serve
    tf.saved_model.save(module, str(folder))


def a_layer(name, module="keras.layers", **config):
    """The description of a layer in a model file."""
    return {"module": module, "class_name": name, "config": config, "registered_name": None, "build_config": {}}


@rare
@both
@pytest.mark.parametrize("kind", ["code", "os.system, a layer", "os.system, an activation", "get_file", "a SavedModel",
                                  "a vocabulary"])
def test_code_and_other_files_are_refused(kind, evil, tmp_path):
    import keras
    mark = tmp_path / "mark"
    secret = tmp_path / "secret.txt"
    secret.write_text("word")
    write_saved_model(tmp_path / "saved", mark)
    code = keras.layers.Lambda(eval(f"lambda images: (open({str(mark)!r}, 'w').close(), images)[1]"))
    system = {"module": "os", "class_name": "function", "config": "system", "registered_name": None}
    layer = {
        "code": keras.saving.serialize_keras_object(code),
        "os.system, a layer": a_layer("system", "os", command=f"echo > {mark}"),
        "os.system, an activation": a_layer("Activation", activation=system),
        "get_file": a_layer("get_file", "keras.utils", fname=str(mark), origin=secret.as_uri()),
        "a SavedModel": a_layer("TFSMLayer", filepath=str(tmp_path / "saved"), call_endpoint="serve"),
        "a vocabulary": a_layer("StringLookup", vocabulary=str(secret)),
    }[kind]
    change(evil, lambda layers: layers.insert(1, layer))
    refused(evil, "Lambda" if kind == "code" else "cannot be loaded as a Keras model")
    assert not mark.exists()


@rare
@pytest.mark.parametrize("evil", [".keras"], indirect=True)
def test_an_archive_that_becomes_far_larger_is_refused(evil):
    """A file of 6 MB with weights of 6 GB, all zeros."""
    with zipfile.ZipFile(evil) as archive:
        members = {name: archive.read(name) for name in ("config.json", "metadata.json")}
    with zipfile.ZipFile(evil, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        with archive.open("model.weights.h5", "w", force_zip64=True) as member:
            for _ in range(60):
                member.write(bytes(100_000_000))
    assert evil.stat().st_size < 7_000_000
    refused(evil, "Not allowed: ZIP member")


@rare
@both
def test_a_network_that_asks_for_terabytes_is_refused(evil):
    def edit(layers):
        layers[-1]["config"]["units"] = 10_000_000
        layers[-1].pop("build_config", None)
    change(evil, edit)
    refused(evil, "more memory than this computer has")


def test_images_that_need_terabytes_are_refused(tmp_path):
    path = write_model(tmp_path / "model.h5", "L.Conv2D(10, 3, activation='softmax')", "L.GlobalAveragePooling2D()",
                       shape=(200_000, 200_000, 3))
    assert "which are too many" in refusal(path)
