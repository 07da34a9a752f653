"""Time train.py, --fast and the tutorial's order of operations: python tests/benchmark.py [ROUNDS [SIDE ...]]
Or time a whole command, from Enter to the prompt: python tests/benchmark.py wait [OPTION ... of train.py]
Or draw the accuracy over the minutes of training, from the logs: python tests/benchmark.py minutes PICTURE LOGS ...

Every measurement has a process of its own; the sides (tutorial, train.py, --fast, and --augment for --fast with 30
epochs) take turns, ROUNDS (3) times, and the table shows the medians.
It reads TFDS_DATA_DIR if that is set, and otherwise the tests' small data set, which it makes in a temporary folder.
"""
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path

root = Path(__file__).parents[1]
steps = 150  # of training, and one validation, measured after as many for warming up


def tutorials_data():
    """The tutorial's input pipeline: every step where the tutorial has it, one image at a time."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    def preprocess_image(image, label):
        return tf.image.convert_image_dtype(image, tf.float32), label

    splits, info = tfds.load("cifar10", with_info=True, as_supervised=True)
    ds_train = splits["train"].repeat().shuffle(1024).map(preprocess_image).batch(64)
    ds_test = splits["test"].repeat().shuffle(1024).map(preprocess_image).batch(64)
    return ds_train, ds_test, info


def measure_pipeline(load_data):
    """Seconds from calling load_data to the first batch, and images a second once every image was seen."""
    begin = time.perf_counter()
    ds_train, ds_test, info = load_data()
    batches = iter(ds_train)
    next(batches)
    first = time.perf_counter() - begin
    epoch = info.splits["train"].num_examples // 64
    for _ in range(epoch):
        next(batches)
    passes = max(1, 1500 // epoch)
    begin = time.perf_counter()
    for _ in range(passes * epoch):
        next(batches)
    return {"first batch, s": first, "pipeline, images/s": passes * epoch * 64 / (time.perf_counter() - begin)}


def measure_training(load_data, validation_steps, with_fast, with_augment, epochs):
    """Wall and CPU milliseconds a training step, seconds of an epoch of 781 steps, and peak memory."""
    import keras

    import train
    from support import augment, fast
    ds_train, ds_test, info = load_data()
    steps_per_epoch = info.splits["train"].num_examples // 64
    if with_augment:
        ds_train = augment.stream(ds_train, steps_per_epoch, epochs)
    model = train.create_model((32, 32, 3))
    if with_fast:
        options = Namespace(epochs=epochs, batch_size=64, augment=with_augment)
        fast.prepare(model, load_data()[0], steps_per_epoch, options)
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
              verbose=0, callbacks=[Clock()])  # the second epoch's figures stay
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
    with_fast, with_augment = side in ("--fast", "--augment"), side == "--augment"
    if side != "tutorial":
        import train
        load_data, validation_steps = train.load_data, None
    else:
        chosen = os.environ.get("TF_ENABLE_ONEDNN_OPTS")
        import train
        if chosen is None:
            del os.environ["TF_ENABLE_ONEDNN_OPTS"]
        load_data, validation_steps = tutorials_data, 10_000 // 64
    if what == "pipeline":
        figures = measure_pipeline(load_data)
    else:
        from support import fast
        epochs = fast.epochs if side == "--fast" else train.epochs
        figures = measure_training(load_data, validation_steps, with_fast, with_augment, epochs)
    print(json.dumps(figures))


phases = [  # how a line printed by train.py begins, and what has ended then
    ("cifar10 is in", "importing the packages, looking at the data"),
    ("  Muon", "data, network, precision, initial values"),
    ("The model is in", "epochs, each with validation and checkpoint; then curves and saving"),
]


def wait(options):
    """Run train.py in a temporary folder, as a user does; print how many seconds each of its phases takes."""
    with tempfile.TemporaryDirectory() as folder:
        begin = last = time.perf_counter()
        script = subprocess.Popen([sys.executable, "-u", root / "train.py", *options], cwd=folder,
                                  stdout=subprocess.PIPE, text=True)
        for line in script.stdout:
            now = time.perf_counter()
            for beginning, phase in phases:
                if line.startswith(beginning):
                    print(f"{now - last:7.1f} s  {phase}")
                    last = now
            if " - val_accuracy" in line:
                print(f"{'':9}  {line.strip()}")
        script.wait()
        end = time.perf_counter()
    print(f"{end - last:7.1f} s  end of the process\n{end - begin:7.1f} s  in all")


def draw_minutes(path, folders):
    """Draw the accuracy on the test images after each epoch over the minutes since the training began, at `path`, for
    the runs whose logs are in these folders."""
    from matplotlib.figure import Figure
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for folder in folders:
        events = EventAccumulator(str(Path(folder, "validation")), size_guidance={"tensors": 0})
        events.Reload()
        begin = events.FirstEventTimestamp()
        epochs = events.Tensors("epoch_accuracy")
        minutes = [(epoch.wall_time - begin) / 60 for epoch in epochs]
        accuracies = [100 * float(make_ndarray(epoch.tensor_proto)) for epoch in epochs]
        line, = axes.plot(minutes, accuracies, "o-", ms=3, lw=1, label=Path(folder).name)
        axes.annotate(f"{accuracies[-1]:.1f} %", (minutes[-1], accuracies[-1]), (0, 6), textcoords="offset points",
                      ha="center", color=line.get_color())
    axes.set_xscale("log")
    ticks = [1, 2, 5, 10, 20, 30]
    axes.set_xticks(ticks, ticks)
    axes.set_xticks([], minor=True)
    axes.set(xlabel="minutes of training", ylabel="accuracy on the test images, %", ylim=(50, 95))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=110)


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
    elif sys.argv[1:2] == ["wait"]:
        wait(sys.argv[2:])
    elif sys.argv[1:2] == ["minutes"]:
        draw_minutes(sys.argv[2], sys.argv[3:])
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 3, sys.argv[2:] or ["tutorial", "train.py", "--fast"])
