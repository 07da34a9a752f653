"""What does not belong together is said in a line or two, with the cure."""
import numpy as np
import pytest

from conftest import info_of, message


def refusal(check, *arguments):
    from support.errors import UserError
    with pytest.raises(UserError) as error:
        check(*arguments)
    return message(str(error.value))


def network(*last, loss="mse"):
    """A network that ends in these layers, compiled."""
    import keras
    model = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten(), *last])
    model.compile(loss=loss)
    return model


def test_the_network_is_asked_for_its_classes():
    from keras.layers import Dense

    from support import checks
    for outputs, classes in (3, "abc"), (1, "ab"), (3, ""):
        checks.check_network(network(Dense(outputs)), info_of(*classes))
    assert refusal(checks.check_network, network(Dense(10)), info_of(*"abc")) == (
        "The network has 10 outputs, but x has 3 classes: a, b, c.\nSet num_classes = 3 in train.py.")
    names = [str(number) for number in range(100)]
    assert ", 50, [...].\nSet num_classes = 100" in refusal(checks.check_network, network(Dense(10)), info_of(*names))


def test_what_few_people_make_is_refused():
    import keras
    from keras.layers import Dense

    from support import checks

    class Own(keras.Model):
        def call(self, images):
            return images

    class Loss(keras.losses.Loss):
        def __init__(self):
            super().__init__()
            self.margin = keras.Variable(1.0)

        def call(self, labels, outputs):
            return self.margin * outputs
    own = Own()
    own.compile(loss="mse")
    assert "Keras does not know the shapes of your class Own" in refusal(checks.check_network, own, info_of())
    inputs = keras.Input((4,))
    two = keras.Model(inputs, [Dense(2)(inputs), Dense(2)(inputs)])
    two.compile(loss=["mse", "mse"])
    assert "several inputs or outputs" in refusal(checks.check_network, two, info_of())
    assert "variable of its own" in refusal(checks.check_network, network(Dense(2), loss=Loss()), info_of())


def test_each_mistake_with_classes_has_its_own_cure():
    """The classes of pictures in a folder, the other project's model, another kind of model."""
    from keras.layers import Dense, Reshape

    from support import checks
    checks.check_classes(network(Dense(2)), {0: "a", 1: "b"})
    assert "test.py has no classes: the folder" in refusal(checks.check_classes, network(Dense(2)), {})
    text = refusal(checks.check_classes, network(Dense(10)), {0: "a", 1: "b"})
    assert "does not classify into the 2 classes of test.py: its output is (None, 10)." in text
    assert "trained for 10 classes" in text and "num_classes = 2" in text and "softmax" not in text
    for layers in [Dense(1)], [Dense(4), Reshape((2, 2))]:
        text = refusal(checks.check_classes, network(*layers), {0: "a", 1: "b"})
        assert 'It should end in Dense(..., activation="softmax")' in text and "num_classes" not in text


def test_images_and_pictures():
    import keras
    import tensorflow as tf

    from support import checks
    images = tf.data.Dataset.from_tensor_slices((np.zeros((3, 8, 8, 3)), range(3))).batch(2)
    assert "not for these test images: its input is (None, 4, 4, 3)" in refusal(checks.check_images, network(), images)
    fitting = np.zeros((3, 4, 4, 3))
    for numbers in np.ones(3), np.ones((3, 1)):
        checks.check_images(network(), tf.data.Dataset.from_tensor_slices((fitting, numbers)).batch(2))
    one_hot = tf.data.Dataset.from_tensor_slices((fitting, np.ones((3, 2)))).batch(2)
    text = refusal(checks.check_images, network(), one_hot)
    assert "labels that are numbers, but those of load_data() are (None, 2)" in text
    for shape in (3072,), (None, 8, 3):
        model = keras.Sequential([keras.Input(shape), keras.layers.Flatten()])
        assert "not for pictures of one size" in refusal(checks.check_pictures, model)
    checks.check_pictures(network())
