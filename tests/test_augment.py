"""--augment: what it changes of the training images, and that a resumed run goes on with it."""
import numpy as np
import pytest

from conftest import keys, source, take


def hidden(images):
    """Which pixels of a batch have the colour that most of them have."""
    keys = images @ np.array([1, 1e3, 1e6])  # a number for each colour; to sort triples would be slow
    found, counts = np.unique(keys, return_counts=True)
    colour = images[keys == found[counts.argmax()]][0]
    assert np.allclose(colour, images.mean(axis=(0, 1, 2)), atol=0.02)
    return (images == colour).all(axis=-1)


def test_augment_flips_and_shifts_and_takes_a_square_out(load):
    import keras

    from support import augment
    keras.utils.set_random_seed(3)
    ds_train, ds_test, info = load(batch_size=50)
    augmented = augment.stream(ds_train, 20, 30)
    images, labels = take(augmented, 2000)
    keras.utils.set_random_seed(3)
    originals, same_labels = take(load(batch_size=50)[0], 2000)
    assert images.dtype == np.float32 and images.shape == originals.shape and (labels == same_labels).all()
    out = np.concatenate([hidden(batch) for batch in np.split(images, 40)])
    assert (out.sum(axis=(1, 2)) <= 64).all() and (out.sum(axis=(1, 2)) >= 16).all()
    assert (out.sum(axis=(1, 2)) == out.any(axis=1).sum(axis=1) * out.any(axis=2).sum(axis=1)).all(), "no rectangle"
    share = out.mean(axis=0)  # 0.06 in the middle, less at the edges
    assert share.min() > 0.005 and share.max() < 0.1, "the square is not at random places"
    one_number = np.array([1, 256, 256 ** 2])  # for each colour
    pixels = np.uint8(images * 255 + 0.5) @ one_number
    padded = np.pad(np.uint8(originals * 255 + 0.5) @ one_number, ((0, 0), (3, 3), (3, 3)), mode="reflect")
    found = np.zeros((2, 7, 7, 2000), bool)  # flipped, shifted down, shifted right
    for rows, columns in np.ndindex(7, 7):
        for flipped, source_images in enumerate((padded, padded[:, :, ::-1])):
            cut = source_images[:, rows:rows + 32, columns:columns + 32]
            found[flipped, rows, columns] = ((cut == pixels) | out).all(axis=(1, 2))
    assert (found.sum(axis=(0, 1, 2)) == 1).all(), "an image is something else than flipped and shifted"
    assert 400 < found[1, :, :, :1000].sum() < 600, "not half of the images are flipped"  # 500, 6.3 deviations
    assert (190 < found.sum(axis=(0, 2, 3))).all() and (190 < found.sum(axis=(0, 1, 3))).all()  # 286, less 6
    assert (2 < found.sum(axis=3)).all(), "a flip and a shift depend on each other"  # 20, less 4
    kinds = found.reshape(98, 2, 1000).argmax(axis=0)
    first, second = (dict(zip(keys(originals[part], labels[part]), kind)) for part, kind in zip(
        (slice(1000), slice(1000, 2000)), kinds))
    assert sum(first[image] % 49 != second[image] % 49 for image in first) > 950, "both passes shift the images alike"
    assert all(first[image] // 49 + second[image] // 49 == 1 for image in first), "not flipped in every other pass"
    keras.utils.set_random_seed(3)
    again = augment.stream(load(batch_size=50)[0], 20, 30)
    assert np.array_equal(take(again, 1000)[0], images[:1000])
    keras.utils.set_random_seed(3)
    resumed = augment.stream(load(batch_size=50)[0].skip(20), 20, 30, first_epoch=1)
    assert np.array_equal(take(resumed, 1000)[0], images[1000:])
    assert sorted(keys(*take(ds_test, 400))) == source(40, seed=1), "test images are never changed"


def test_short_runs_have_easier_images():
    from support import augment
    assert [augment.strength(epochs) for epochs in (1, 9, 10, 30)] == [(2, 6), (2, 6), (3, 8), (3, 8)]


def test_augment_takes_whole_numbers_and_weights(load):
    """Of uint8 images, too, each is flipped in one of two epochs, and sample weights stay as they are."""
    import tensorflow as tf

    from support import augment
    images = np.random.default_rng(0).integers(0, 256, (100, 32, 32, 3)).astype(np.uint8)
    flips = []
    for epoch in 0, 1:
        changed, labels, weights = augment.change_images((images, tf.range(100), 2.5), epoch, (1, epoch), 3, 8)
        assert changed.dtype == tf.uint8 and (labels.numpy() == range(100)).all() and weights == 2.5
        middle = images[:, 3:-3, 3:-3]
        flips.append([not any((changed[number, row:row + 26, column:column + 26].numpy() == middle[number]).mean() > 0.8
                              for row, column in np.ndindex(7, 7)) for number in range(20)])
    assert all(first != second for first, second in zip(*flips)) and 3 < sum(flips[0]) < 17


def test_what_is_no_image_is_refused(load):
    """Such as pixels in a row, for a network of Dense layers."""
    from support import augment
    from support.errors import UserError
    flat = load()[0].map(lambda images, labels: (images[:, 0, 0], labels))
    with pytest.raises(UserError, match=r"(?s)\(64, 3\), cannot be flipped.*augmented_from = 10_001"):
        augment.stream(flat, 15, 30)


def test_a_resumed_run_does_not_augment_what_it_skips(load, monkeypatch):
    import tensorflow as tf

    from support import augment
    count = tf.Variable(0)
    change = augment.change_images

    def counted(*arguments):
        count.assign_add(1)
        return change(*arguments)
    monkeypatch.setattr(augment, "change_images", counted)
    stream = augment.stream(load(batch_size=50)[0].skip(200), 20, 30, first_epoch=10)
    next(iter(stream))
    assert 1 <= count.numpy() < 50
