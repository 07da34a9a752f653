"""--fast: the learner's own network learns faster, and more, with other settings for this training.
Without this, the tutorial's accuracy takes 16 to 30 epochs, and 90 % is out of reach."""
import keras
import numpy as np
import tensorflow as tf
from keras.layers import Dropout

from support import augment, initial_values, machine
from support.optimizer import Muon, OneCycle, kernels_for_muon

# The settings. They were chosen on training images that were set aside.
epochs = 2
augmented_from = 4  # epochs; shorter runs see each image too seldom to learn it by heart
adam_peak = 0.002  # highest learning rate of Adam, for 3 epochs of batches of 64; longer runs have lower ones
muon_peak = 0.003  # the same for Muon
gain = 0.4  # size of the initial values; small ones change direction faster
smoothing = 0.2  # part of each label that is spread over all classes
weight_decay = 0.2  # part of each weight that a step takes off, times the learning rate
warm_up = 0.15  # part of the run in which the learning rates rise
dropout = 0.3  # part of its rate that the last Dropout layer keeps in runs of 30 epochs or more; the others are off


def prepare(model, ds_train, steps_per_epoch, args, precision=None):
    """Give the compiled model other initial values and, for the training, another precision, dropout, optimizer and
    loss. Print what these are, and whether the images are changed.
    `ds_train` has batches of images and labels, and is used up; `args` has the options of the command line; `precision`
    is the Keras policy of the run that is resumed. Return what restore() needs."""
    print(f"Fast recipe: {args.epochs} epoch{'s' if args.epochs > 1 else ''}")
    if args.augment:
        farthest, hole = augment.strength(args.epochs)
        print(f"  images flipped, shifted by up to {farthest} pixels, {hole}x{hole} pixels hidden")
    else:
        print("  images as they are")
    initial_values.set_all(model, ds_train, gain)
    layers = initial_values.inner_layers(model)
    dropouts = [layer for layer in layers if isinstance(layer, Dropout)]
    own_settings = {
        "precision": [(part, part.dtype_policy) for part in [model, *layers]],
        "dropout": [(layer, layer.rate) for layer in dropouts],
        "compile": model._compile_config.config,  # the arguments of compile() in create_model()
    }
    set_precision(model, layers, precision or machine.faster_precision())
    set_dropout(dropouts, args.epochs)
    loss = smoothed_loss(model)
    print("  smoothed labels" if loss else "  the network's own loss")
    optimizer = make_optimizer(model, args, steps_per_epoch)
    model.compile(**{**own_settings["compile"], "optimizer": optimizer, "loss": loss or model.loss})
    if loss:  # make the metrics now, so that `fit` traces the training step once, not twice
        model.compute_metrics(None, np.zeros(1), np.zeros((1, model.output_shape[-1]), "float32"))
    return own_settings


def restore(model, own_settings):
    """Give the trained model back the precision, dropout, optimizer and loss of create_model(), as prepare() has
    returned them. Its weights stay."""
    for part, policy in own_settings["precision"]:
        part.dtype_policy = policy
    for layer, rate in own_settings["dropout"]:
        layer.rate = rate
    model.compile(**own_settings["compile"])


def set_precision(model, layers, precision):
    """Let the layers compute with this Keras policy. Their weights stay float32, and so does the last layer, since 16
    bits are too few for the loss; so do layer classes of the learner's own, which may not be written for 16 bits."""
    model.dtype_policy = precision
    for layer in layers[:-1]:
        if layer.dtype_policy.name == "float32" and type(layer).__module__.startswith("keras."):
            layer.dtype_policy = precision
    print(f"  computed in {precision}")


def set_dropout(layers, epochs):
    """Set the rates of the Dropout layers for a run of this length. A run of up to 10 epochs has no dropout; in one of
    30 or more, the last rate is multiplied by `dropout`; in between, it grows."""
    share = dropout * min(1, max(0, (epochs - 10) / 20))
    for layer in layers[:-1]:
        layer.rate = 0
    for layer in layers[-1:]:
        layer.rate *= share
    print("  Dropout layers: off, the last one weaker" if layers and share else "  Dropout layers: off")


def smoothed_loss(model):
    """Return the loss of the model, a function, with a part of each label spread over all classes
    (https://arxiv.org/abs/1512.00567); None if its loss is not sparse categorical crossentropy for several classes."""
    known = ("sparse_categorical_crossentropy", keras.losses.sparse_categorical_crossentropy)
    if type(model.loss) is not keras.losses.SparseCategoricalCrossentropy and model.loss not in known:
        return None
    if len(model.output_shape) != 2 or model.output_shape[-1] == 1:
        return None
    if getattr(model.loss, "ignore_class", None) is not None:
        return None
    from_logits = getattr(model.loss, "from_logits", False)  # whether the outputs are scores, not probabilities

    def loss(labels, outputs):
        targets = tf.one_hot(tf.cast(tf.reshape(labels, [-1]), tf.int32), outputs.shape[-1])
        return keras.losses.categorical_crossentropy(targets, outputs, from_logits, smoothing)
    return loss


def make_optimizer(model, args, steps_per_epoch):
    """Return the optimizer for a run with these options. Small batches need lower rates, and so do long runs: 24 epochs
    have half the rates of 3."""
    scale = (args.batch_size / 64) ** 0.5 * (3 / args.epochs) ** (1 / 3)
    kernels = len(kernels_for_muon(model.trainable_variables))
    muons = f"{scale * muon_peak:.2g}"
    adams = f"{scale * adam_peak:.2g}"
    if kernels:
        print(f"  Muon for {kernels} kernel{'s' if kernels > 1 else ''}, Adam for the rest; "
              f"learning rates rise to {muons} and {adams}, then fall to 0")
    else:
        print(f"  Adam; its learning rate rises to {adams}, then falls to 0")
    rate = OneCycle(scale * adam_peak, args.epochs * steps_per_epoch, warm_up)
    return Muon(rate, muon_peak / adam_peak, weight_decay=weight_decay)
