"""Time train.py, --fast and the tutorial's order of operations: python tests/benchmark.py [ROUNDS [SIDE ...]]

Every measurement has a process of its own; the sides (tutorial, train.py, --fast, and --augment for a run of 30 epochs
with both options) take turns, ROUNDS (3) times, and the table shows the medians.
It reads TFDS_DATA_DIR if that is set, and otherwise the tests' small data set, which it makes in a temporary folder.
"""
import functools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

root = Path(__file__).parents[1]
steps = 150  # of training, and one validation, measured after as many for warming up


def tutorials_data():
    """The tutorial's input pipeline: every step where the tutorial has it, one image at a time."""
    import tensorflow as tf
    import tensorflow_datasets as tfds
    splits, info = tfds.load("cifar10", with_info=True, as_supervised=True)

    def to_float(image, label):
        return tf.cast(image, tf.float32) / 255.0, label
    ds_train, ds_test = (splits[part].repeat().shuffle(1024).map(to_float).batch(64) for part in ("train", "test"))
    return ds_train, ds_test, info


def measure_pipeline(load_data):
    """Seconds from calling load_data to the first batch, and images a second once every image was seen."""
    begin = time.perf_counter()
    ds_train, ds_test, info = load_data()
    batches = iter(ds_train)
    next(batches)
    first = time.perf_counter() - begin
    epoch = info.splits["train"].num_examples // 64 + 1
    for _ in range(epoch):
        next(batches)
    passes = max(1, 1500 // epoch)
    begin = time.perf_counter()
    for _ in range(passes * epoch):
        next(batches)
    return {"first batch, s": first, "pipeline, images/s": passes * epoch * 64 / (time.perf_counter() - begin)}


def measure_training(load_data, validation_steps, fast, epochs):
    """Wall and CPU milliseconds a training step, seconds of an epoch of 781 steps, and peak memory."""
    import keras

    import train
    from support import recipe
    ds_train, ds_test, info = load_data()
    compiled = {}
    if fast:
        keras.config.set_dtype_policy(recipe.faster_precision())
        compiled = {"optimizer": recipe.fast_optimizer(epochs, 781), "loss": recipe.smoothed_crossentropy}
    model = train.create_model((32, 32, 3), **compiled)
    clock = {}

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            clock["begin"] = time.perf_counter(), time.process_time()

        def on_train_batch_end(self, batch, logs=None):  # after the last one, Keras may wait for a thread of tf.data's
            clock["trained"] = time.perf_counter(), time.process_time()

        def on_test_begin(self, logs=None):
            clock["test"] = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            clock["end"] = time.perf_counter()

    model.fit(ds_train, steps_per_epoch=steps, epochs=2, validation_data=ds_test, validation_steps=validation_steps,
              verbose=0, shuffle=False, callbacks=[Clock()])  # the second epoch's figures stay
    wall, cpu = (trained - begin for begin, trained in zip(clock["begin"], clock["trained"]))
    validation = clock["end"] - clock["test"]
    epoch = wall / steps * 781 + validation
    figures = {"CPU, ms/step": cpu / steps * 1000, "wall, ms/step": wall / steps * 1000, "wall, s/epoch": epoch,
               "wall, min/run": epoch / 60 * epochs}
    if sys.platform == "linux":
        import resource  # elsewhere it counts in other units, or does not exist
        figures["peak memory, MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return figures


def measure(side, what):
    """In a process of its own: measure one side and print the figures as JSON."""
    sys.path.insert(0, str(root))
    fast, augment = side in ("--fast", "--augment"), side == "--augment"
    if side != "tutorial":
        import train
        load_data, validation_steps = functools.partial(train.load_data, augment=augment), None
    else:
        chosen = os.environ.get("TF_ENABLE_ONEDNN_OPTS")
        import train
        if chosen is None:
            del os.environ["TF_ENABLE_ONEDNN_OPTS"]
        load_data, validation_steps = tutorials_data, 10_000 // 64
    if what == "pipeline":
        figures = measure_pipeline(load_data)
    else:
        from support.recipe import fast_epochs
        figures = measure_training(load_data, validation_steps, fast, fast_epochs if side == "--fast" else train.epochs)
    print(json.dumps(figures))


def main(rounds, sides):
    found = {side: {} for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        if not os.environ.get("TFDS_DATA_DIR"):
            os.environ["TFDS_DATA_DIR"] = folder
            subprocess.run([sys.executable, root / "tests/small_cifar10.py", folder], check=True, capture_output=True)
        for turn in range(rounds):
            for what in "pipeline", "training":
                for side in sides if turn % 2 else sides[::-1]:
                    if (side, what) == ("--fast", "pipeline"):
                        continue  # it is train.py's
                    print(f"round {turn + 1} of {rounds}: {what} of {side}", file=sys.stderr, flush=True)
                    done = subprocess.run([sys.executable, __file__, "--measure", side, what], check=True,
                                          stdout=subprocess.PIPE, text=True)
                    for key, value in json.loads(done.stdout.strip().split("\n")[-1]).items():
                        found[side].setdefault(key, []).append(value)
    print(f"{'median of ' + str(rounds):<22}" + "".join(f"{side:>12}" for side in sides))
    median = {side: {key: statistics.median(values) for key, values in found[side].items()} for side in sides}
    for key in median[sides[0]]:
        print(f"{key:<22}" + "".join(f"{median[side].get(key, math.nan):>12.2f}" for side in sides))
    if {"--fast", "train.py"} <= set(sides):
        share = median["--fast"]["wall, min/run"] / median["train.py"]["wall, min/run"]
        print(f"--fast takes {share:.3f} of the time of train.py")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(*sys.argv[2:])
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 3, sys.argv[2:] or ["tutorial", "train.py", "--fast"])
