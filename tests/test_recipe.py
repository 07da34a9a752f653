"""--fast and --augment: what they change, what they leave alone, and that a resumed run keeps them."""
import json
import os

import h5py
import numpy as np
import pytest

from conftest import (
    checkpoint,
    curves,
    environment,
    keys,
    message,
    name,
    root,
    run,
    same_as_undisturbed,
    source,
    start,
    take,
    wait_for,
)

options = ["--seed", 1, "--fast", "--augment", "--epochs", 4]  # of one step on the tiny data set


def without(*dropped):
    return [option for option in options if option not in dropped]


def test_augment_flips_half_of_the_training_images_and_shifts_them(load):
    ds_train, ds_test, info = load(batch_size=50, seed=3, augment=True)
    images, labels = take(ds_train, 2000)
    originals, same_labels = take(load(batch_size=50, seed=3)[0], 2000)
    assert images.dtype == np.float32 and images.shape == originals.shape and (labels == same_labels).all()
    pixels, padded = np.uint8(images * 255 + 0.5), np.pad(np.uint8(originals * 255 + 0.5), (
        (0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    found = np.zeros((2, 5, 5, 2000), bool)  # flipped, shifted down, shifted right
    for rows, columns in np.ndindex(5, 5):
        for flipped, source_images in enumerate((padded, padded[:, :, ::-1])):
            cut = source_images[:, rows:rows + 32, columns:columns + 32]
            found[flipped, rows, columns] = (cut == pixels).all(axis=(1, 2, 3))
    assert (found.sum(axis=(0, 1, 2)) == 1).all(), "an image is something else than flipped and shifted"
    assert (850 < found.sum(axis=(1, 2, 3))).all(), "not half of the images are flipped"  # 1,000, less 6.7 deviations
    assert (290 < found.sum(axis=(0, 2, 3))).all() and (290 < found.sum(axis=(0, 1, 3))).all()  # 400, less 6
    assert (10 < found.sum(axis=3)).all(), "a flip and a shift depend on each other"  # 40, less 4.8
    kinds = found.reshape(50, 2, 1000).argmax(axis=0)
    first, second = (dict(zip(keys(originals[part], labels[part]), kind)) for part, kind in zip(
        (slice(1000), slice(1000, 2000)), kinds))
    assert sum(first[image] != second[image] for image in first) > 900, "both passes change the images alike"
    assert np.array_equal(take(load(batch_size=50, seed=3, augment=True)[0], 1000)[0], images[:1000])
    assert sorted(keys(*take(ds_test, 400))) == source(40, seed=1), "test images are never changed"


def test_both_rates_rise_and_fall_and_tensorboard_shows_them(undisturbed):
    from support import recipe
    found = curves(undisturbed / "logs" / name)
    scale = (recipe.fast_epochs / 4) ** 0.5  # longer runs have lower rates
    peaks = {"": scale * recipe.adam_peak, "_muon": scale * recipe.muon_peak}
    for key, peak in ((f"train/epoch_learning_rate{end}", peak) for end, peak in peaks.items()):
        assert [step for step, rate in found[key]] == [0, 1, 2, 3]
        expected = [peak * min(done / recipe.warm_up, (1 - done) / (1 - recipe.warm_up))
                    for done in (0.25, 0.5, 0.75, 1)]
        assert np.allclose([rate for step, rate in found[key]], expected, atol=1e-7)


def test_three_epochs_are_the_default(monkeypatch):
    import train
    monkeypatch.setattr("sys.argv", ["train.py", "--fast"])
    assert train.parse_args().epochs == 3


def test_initial_values_are_orthogonal_and_the_first_layer_whitens(data, monkeypatch):
    import keras
    import tensorflow as tf

    import train
    from support import recipe
    monkeypatch.setattr(recipe.tfds, "load", lambda *_, split, batch_size, load=recipe.tfds.load: load(
        "cifar10", split=split, batch_size=batch_size, data_dir=data))
    keras.utils.set_random_seed(1)
    model = train.create_model((32, 32, 3))
    first, *others, last = [layer for layer in model.layers if layer.weights]
    before = last.kernel.numpy()
    recipe.set_initial_values(model)
    assert (last.kernel.numpy() == before).all()
    for layer in others:
        kernel = layer.kernel.numpy().reshape(-1, layer.kernel.shape[-1])
        np.testing.assert_allclose(np.linalg.svd(kernel)[1], recipe.gain, rtol=1e-4)
    images = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3)) // np.array([1, 2, 8])  # not of equal variance
    images = (images + np.roll(images, 1, axis=2)).astype(np.uint8)  # and correlated
    first.set_weights(recipe.whitening(tf.constant(images), 32))
    outputs = first(images / np.float32(255))[:, 1:-1, 1:-1].numpy().reshape(-1, 32)
    covariance = np.cov(outputs[:, :16].T) / recipe.gain ** 2
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=0.01)
    assert (0.9 < np.diag(covariance)).all() and (np.diag(covariance) < 1).all()
    np.testing.assert_allclose(outputs[:, 16:], -outputs[:, :16], atol=1e-4)
    np.testing.assert_allclose(outputs.mean(axis=0), 0, atol=1e-3)


def test_muon_makes_singular_values_about_equal():
    import keras
    import tensorflow as tf

    from support import recipe
    random = np.random.default_rng(0)
    kernel, bias = (keras.Variable(np.zeros(shape, np.float32)) for shape in ((3, 3, 8, 16), (16,)))
    gradients = [random.normal(size=(72, 4)) @ np.diag([100, 10, 1, 0.5]) @ random.normal(size=(4, 16)),
                 random.normal(size=16)]
    optimizer = recipe.Muon(recipe.adam_peak)
    optimizer.build([kernel, bias])
    optimizer.apply([tf.constant(gradients[0].reshape(3, 3, 8, 16), tf.float32), tf.constant(gradients[1], tf.float32)])
    change = np.linalg.svd(-kernel.numpy().reshape(72, 16) / recipe.muon_peak / (72 / 16) ** 0.5)[1]
    assert (change[:3] > 0.5).all() and (change < 1.3).all()
    np.testing.assert_allclose(bias.numpy(), -recipe.adam_peak * np.sign(gradients[1]), rtol=1e-3)  # Adam's first step


def test_it_says_what_it_does_and_resumes_to_the_same_bytes(half, undisturbed, tiny):
    out, err = run("train.py", *options, cwd=half, data=tiny)
    assert "Resuming after epoch" in out and err == ""
    assert "Fast recipe: 4 epochs in " in out and "Muon" in out and "rise to 0.0026 and 0.0017" in out
    same_as_undisturbed(half, undisturbed)


@pytest.mark.parametrize("others, different", [
    (without("--fast"), "recipe fast-v2, not tutorial"), (without("--augment"), "augment True, not False"),
    ([*options, "--epochs", 6], "epochs 4, not 6")])  # the rates would rise again
def test_a_run_is_not_resumed_with_others(half, tiny, others, different):
    before = (half / checkpoint).read_bytes()
    out, err = run("train.py", *others, cwd=half, data=tiny, code=1)
    assert different in message(err) and "--restart" in err
    assert ("rise to 0.0021 and 0.0014" in out) == (6 in others), "longer runs have lower rates"
    assert (half / checkpoint).read_bytes() == before


def test_a_tutorial_run_is_not_resumed_with_fast(tmp_path, tiny):
    import keras

    from support.checkpoint import Checkpoint
    from support.messages import UserError
    path = tmp_path / "x.checkpoint.npz"
    np.savez(path, options=json.dumps({"epochs": 4, "recipe": "tutorial", "network": "0"}),
             history=json.dumps([{"loss": 1.0}]))
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with pytest.raises(UserError, match="recipe tutorial, not fast"):
        Checkpoint(path).restore(model, {"epochs": 4, "recipe": "fast"}, [])


def test_fast_needs_its_own_batch_size(tmp_path, tiny):
    out, err = run("train.py", "--fast", "--batch-size", 32, cwd=tmp_path, data=tiny, code=2)
    assert out == "" and "--batch-size" in message(err) and "--fast" in err and list(tmp_path.iterdir()) == []


def test_the_saved_model_is_an_ordinary_one(undisturbed, tmp_path):
    """A fresh interpreter without this project opens it, compiled or not, and trains it further with Adam."""
    program = tmp_path / "program.py"
    program.write_text("import sys, numpy, keras\n"
                       "keras.models.load_model(sys.argv[1], compile=False)\n"
                       "model = keras.models.load_model(sys.argv[1])\n"
                       "model.fit(numpy.zeros((8, 32, 32, 3)), numpy.zeros(8), verbose=0)\n"
                       "print(type(model.optimizer).__name__, model.count_params(), 'train' in sys.modules)")
    out, err = start(program, undisturbed / f"results/{name}.h5", cwd=tmp_path, data=tmp_path).wait()
    assert out == "Adam 2395434 False\n", err


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_a_model_trained_in_16_bits_is_like_any_other(policy, tiny, tmp_path):
    """The choice is taken from the machine here, since few have both; all else runs as it is, emulated if need be."""
    program = tmp_path / "train.py"
    program.write_text(f"import sys; sys.path[0] = {str(root)!r}; import train\n"
                       f"train.recipe.faster_precision = lambda: {policy!r}\ntrain.messages.run(train.main)")
    options = ["--fast", "--epochs", 2, "--seed", 1]
    env = environment(tiny, ONEDNN_MAX_CPU_ISA=os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL"))
    script = start(program, *options, cwd=tmp_path, data=tiny, env=env)
    assert wait_for(tmp_path / checkpoint, script, size=1_000_000), script.output()
    script.kill()
    out, err = run("train.py", *options, cwd=tmp_path, data=tiny, env=env)  # may choose otherwise, here
    assert f"Fast recipe: 2 epochs in {policy}" in out and "Resuming after epoch 1 of 2" in out and err == ""
    last = out.split("val_accuracy: ")[-1].split()[0]
    with h5py.File(tmp_path / f"results/{name}.h5") as file:
        assert "mixed" not in file.attrs["model_config"] and "Muon" not in file.attrs["training_config"]
        found = []
        file["model_weights"].visititems(lambda path, item: found.append(getattr(item, "dtype", np.float32)))
    assert found and all(dtype == np.float32 for dtype in found)
    out, err = run("test.py", cwd=tmp_path, data=tiny)
    accuracy = float(out.split("Test accuracy: ")[1].split()[0]) / 100
    assert err == "" and abs(accuracy - float(last)) <= 0.0501  # 16 bits may see 2 of the 40 images otherwise
