"""--cosine, --augment and --mixed-precision: what they change, what they leave alone, and that a continued run keeps them."""
import math
import subprocess
import sys

import h5py
import numpy as np
import pytest

from conftest import backup, curves, environment, message, name, plain, root, run, same_as_undisturbed
from test_train import keys, load, source, take  # noqa: F401 (a fixture)

options = ["--epochs", 4, "--batch-size", 40, "--seed", 1, "--cosine", "--augment"]  # 5 steps an epoch


def without(*dropped):
    return [option for option in options if option not in dropped]


def test_augment_mirrors_half_of_the_training_images(load):  # noqa: F811
    ds_train, ds_test, info = load(batch_size=50, seed=3, augment=True)
    plain_train = load(batch_size=50, seed=3)[0]
    images, labels = take(ds_train, 2000)
    originals, same_labels = take(plain_train, 2000)
    assert images.dtype == np.float32 and (labels == same_labels).all()
    mirrored = [not np.array_equal(image, original) for image, original in zip(images, originals)]
    for image, original, changed in zip(images, originals, mirrored):
        assert np.array_equal(image, original[:, ::-1] if changed else original)
    assert 400 < sum(mirrored[:1000]) < 600 and 400 < sum(mirrored[1000:]) < 600  # 6 standard deviations around 500
    first, second = (dict(zip(keys(originals[part], labels[part]), mirrored[part])) for part in (
        slice(1000), slice(1000, 2000)))
    assert 400 < sum(first[image] != second[image] for image in first) < 600, "both passes mirror the same images"
    assert np.array_equal(take(load(batch_size=50, seed=3, augment=True)[0], 1000)[0], images[:1000])
    assert sorted(keys(*take(ds_test, 400))) == source(40, seed=1), "test images are never changed"


def test_cosine_falls_from_the_usual_rate_to_zero(undisturbed):
    found = curves(undisturbed / "logs" / name)["train/epoch_learning_rate"]
    assert [step for step, rate in found] == [0, 1, 2, 3]
    expected = [0.0005 * (1 + math.cos(math.pi * epoch / 4)) for epoch in (1, 2, 3, 4)]
    assert np.allclose([rate for step, rate in found], expected, atol=1e-9)


def test_a_continued_run_keeps_them(half, undisturbed, tiny):
    out, err = run("train.py", *options, cwd=half, data=tiny)
    assert "Continuing after epoch" in out and err == ""
    same_as_undisturbed(half, undisturbed)


@pytest.mark.parametrize("others, different", [
    (without("--cosine"), "other learning rate"), (without("--augment"), "other augmentation"),
    ([*options[2:], "--epochs", 6], "other epochs")])  # the rate would jump up again
def test_a_run_is_not_continued_with_others(half, tiny, others, different):
    before = (half / backup).read_bytes()
    out, err = run("train.py", *others, cwd=half, data=tiny, code=1)
    assert different in message(err)
    assert (half / backup).read_bytes() == before


def test_mixed_precision_on_this_machine(tiny, tmp_path):
    """Where 16 bits are not faster, it says so and ends with the very model of a run without the switch."""
    short = ["--epochs", 1, "--batch-size", 40, "--seed", 1]
    out, err = run("train.py", *short, "--mixed-precision", cwd=tmp_path, data=tiny)
    assert err == ""
    said = [line for line in out.split("\n") if line.startswith("Mixed precision: ")]
    assert len(said) == 1
    run("train.py", *short, "--name", "plain", cwd=tmp_path, data=tiny)
    same = (tmp_path / f"results/{name}.h5").read_bytes() == (tmp_path / "results/plain.h5").read_bytes()
    assert same == ("going on in float32" in said[0])
    run("test.py", cwd=tmp_path, data=tiny)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_a_model_trained_in_16_bits_is_like_any_other(policy, tiny, tmp_path):
    """The choice is taken from the machine here, since few have both; all else runs as it is, emulated if need be."""
    program = (f"import sys; sys.path.insert(0, {str(root)!r}); import train\n"
               f"train.faster_policy = lambda gpus: {policy!r}\ntrain.run(train.main)")
    short = ["--epochs", "2", "--batch-size", "20", "--seed", "1", "--mixed-precision"]
    done = subprocess.run([sys.executable, "-c", program, *short], cwd=tmp_path, env=environment(tiny),
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and done.stderr == "", done.stderr[-3000:]
    assert f"Mixed precision: {policy[6:]}" in done.stdout
    last = plain(done.stdout).split("val_accuracy: ")[-1].split()[0]
    with h5py.File(tmp_path / f"results/{name}.h5") as file:
        assert "mixed" not in file.attrs["model_config"]
        found = []
        file["model_weights"].visititems(lambda path, item: found.append(getattr(item, "dtype", np.float32)))
    assert found and all(dtype == np.float32 for dtype in found)
    out, err = run("test.py", cwd=tmp_path, data=tiny)
    accuracy = float(out.split("Test accuracy: ")[1].split()[0]) / 100
    assert err == "" and abs(accuracy - float(last)) <= 0.0601  # 16 bits may see 3 of the 50 images otherwise
