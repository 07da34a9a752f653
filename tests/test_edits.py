"""A changed line in train.py or test.py does what it says, and a mistake in it is shown."""
import csv
import re
import shutil
import signal
import tarfile

import numpy as np
import pytest

from conftest import (
    checkpoint,
    in_one_go,
    interrupt,
    message,
    name,
    plain,
    posix,
    rare,
    root,
    run,
    start,
    wait_for,
    wait_for_output,
)
from small_cifar10 import make_images


def edited(folder, *changes, script="train.py"):
    """Put the project into a folder, with changes (old, new) in a script; return the path of train.py."""
    if not (folder / "support").exists():
        shutil.copytree(root / "support", folder / "support")
        for file in "train.py", "test.py":
            shutil.copy(root / file, folder)
    path = folder / script
    source = path.read_text(encoding="utf-8")
    for old, new in changes:
        assert old in source, old
        source = source.replace(old, new)
    path.write_text(source, encoding="utf-8")
    return folder / "train.py"


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
                     "no whitening: the first layer has more than 54 filters"),
    "separable first": ([imported("SeparableConv2D"), ("Conv2D(32", "SeparableConv2D(32")],
                        "no whitening: the first layer is not a convolution of three colours"),
    "no softmax, other dials": ([
                    ("\nbatch_size = 64\n", "\nbatch_size = 32\n"), ("\nepochs = 30\n", "\nepochs = 2\n"),
                    ('Dense(num_classes, activation="softmax")', "Dense(num_classes)"),
                    ('loss="sparse_categorical_crossentropy"',
                     "loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)")], ""),
    "two branches": (two_branches("Add()([a, b])"), ""),
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


often = ["normalization", "no softmax, other dials", "two branches"]


@pytest.mark.parametrize("edit", [edit if edit in often else pytest.param(edit, marks=rare) for edit in edits])
def test_edited_networks_and_dials_take_fast_resume_and_are_tested(edit, tmp_path, tiny):
    changes, left_out = edits[edit]
    edited(tmp_path, *changes)
    options = ["--seed", "1"] if "dials" in edit else ["--epochs", "2", "--seed", "1"]
    script = run_twice("train", ["--epochs", "1", "--fast", "--name", "fast"], options, folder=tmp_path, data=tiny)
    assert wait_for(tmp_path / checkpoint, script, size=1_000_000), script.output()
    out, err = map(plain, script.kill())
    assert "Fast recipe" in out and left_out in out
    assert "whitening first layer" in out or left_out
    out, err = run(tmp_path / "train.py", *options, cwd=tmp_path, data=tiny)
    assert err == "" and "Resuming after epoch" in out and "Epoch 2/2" in out
    script = run_twice("test", ["results/fast.h5"], [], folder=tmp_path, data=tiny)
    out, err = map(plain, script.wait())
    assert script.returncode == 0 and out.count("Test accuracy: ") == 2, err
    rows = list(csv.DictReader((tmp_path / f"logs/{name}/epochs.csv").open()))
    val_loss = float(rows[-1]["val_loss"])
    assert float(re.findall(r"loss: ([\d.e-]+)", out)[-1]) == pytest.approx(val_loss, abs=2e-4)


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


def test_another_data_set(cifar100, tmp_path):
    train = edited(tmp_path, ('dataset = "cifar10"', 'dataset = "cifar100"'),
                   ("num_classes = 10\n", "num_classes = 100\n"))
    out, err = run(train, "--fast", "--epochs", 1, cwd=tmp_path, data=cifar100)
    assert "cifar100 is in" in out and "(None, 100)" in out and err == ""
    out, err = run(tmp_path / "test.py", cwd=tmp_path, data=cifar100, code=1)
    assert "into 10 classes" in message(err)
    names = re.search(r"categories = \{.*?\n\}", (tmp_path / "test.py").read_text(), re.S)[0]
    edited(tmp_path, (names, "categories = {label: f'fine{label}' for label in range(100)}"), script="test.py")
    out, err = run(tmp_path / "test.py", "--report", cwd=tmp_path, data=cifar100)
    assert err == "" and re.search(r"^Predicted label: fine\d+\nTrue label: fine\d+$", out, re.M)
    assert re.search(r"^fine99 ", out, re.M)


@pytest.mark.parametrize("change, reason", [
    (("num_classes = 10\n", "num_classes = 5\n"), "label value"),
    (('"sparse_categorical_crossentropy"', '"categorical_crossentropy"'), "shape"),
    (("    # construct the model\n", "    open('missing')\n"), "FileNotFoundError"),
    (('split="test"', 'split="tset"'), "tset"),
    (('dataset = "cifar10"', 'dataset = "cifar11"'), "cifar11"),
], ids=str)
def test_a_mistake_in_the_code_keeps_its_traceback(change, reason, tmp_path, tiny):
    script = start(edited(tmp_path, change), *in_one_go, cwd=tmp_path, data=tiny)
    out, err = script.wait()
    assert script.returncode == 1
    assert err.count("Traceback") >= 1 and reason in err and "train.py" in err and "Delete" not in err


@posix
def test_a_learners_own_answer_to_ctrl_c(tmp_path, tiny):
    """An `except KeyboardInterrupt` around `fit` works. A Ctrl-C that is lost, as in TensorFlow, needs a second one."""
    import keras
    fit = re.search(r"    model\.fit\(.*?\n    \)\n", (root / "train.py").read_text(encoding="utf-8"), re.S)[0]
    tried = "    try:\n" + re.sub("(?m)^", "    ", fit)[:-4]
    train = edited(tmp_path, (fit, tried + "    except KeyboardInterrupt:\n        print('saving what there is')\n"))
    script = start(train, "--epochs", 300, "--fast", cwd=tmp_path, data=tiny)
    wait_for_output(script, "Epoch 2/300")
    out, err = interrupt(script)
    assert script.returncode == 0 and "saving what there is" in out and "The model is in" in out and err == ""
    assert (tmp_path / checkpoint).exists(), "the run could not be resumed"
    assert keras.models.load_model(tmp_path / f"results/{name}.h5").optimizer.name == "adam"
    lost = "    except KeyboardInterrupt:\n        print('lost')\n        import time\n        time.sleep(300)\n"
    train = edited(tmp_path, ("    except KeyboardInterrupt:\n        print('saving what there is')\n", lost))
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


empty_if = re.compile(r"^    if [^\n]*:\n(?=\n|    \S)", re.M)
repairs = {  # besides deleting each `if` that is left empty
    "train.py": [("    # train the model\n", "    callbacks = [tensorboard]\n    initial_epoch = 0\n    # train\n"),
                 ("        model.save(path)", '    model.save(f"results/{args.name}.h5")'),
                 ("\nepochs = 30\n", "\nepochs = 2\n")],  # two are enough here
    "test.py": [("import numpy as np\n", "import numpy as np\nfrom keras.models import load_model\n")],
}


def test_without_support_it_is_the_tutorial(tmp_path, tiny):
    """Without each line that names a file of support/, the scripts run after three repairs."""
    modules = "|".join(path.stem for path in (root / "support").glob("*.py") if path.stem != "__init__")
    names_a_module = re.compile(rf"(?<![\w.])({modules})\.\w|Checkpoint|checkpoint|support")
    for script in repairs:
        lines = (root / script).read_text(encoding="utf-8").split("\n")
        source = "\n".join(line for line in lines if not names_a_module.search(line))
        source = empty_if.sub("", source)
        for old, new in repairs[script]:
            assert old in source, old
            source = source.replace(old, new)
        (tmp_path / script).write_text(source, encoding="utf-8")
    script = start(tmp_path / "train.py", cwd=tmp_path, data=tiny)
    out, err = script.wait()
    assert script.returncode == 0 and out.count("Epoch ") == 2, err
    assert {path.name for path in tmp_path.iterdir()} == {"train.py", "test.py", "results", "logs"}
    script = start(tmp_path / "test.py", cwd=tmp_path, data=tiny)
    out, err = script.wait()
    assert re.search(r"^Test accuracy: [\d.]+ %\nPredicted label: \w+\nTrue label: \w+$", plain(out), re.M), err
