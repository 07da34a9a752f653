"""TensorBoard's own reader and its own server find curves, graph, options and pictures in the logs."""
import contextlib
import csv
import json
import shutil
import socket
import time
import urllib.request
from pathlib import Path
from urllib.parse import quote

import pytest

from conftest import (
    checkpoint,
    convolutions,
    curves,
    edited,
    hparams_of,
    in_one_go,
    interrupt,
    name,
    options,
    posix,
    rare,
    reader,
    run,
    size_and_colours,
    smaller,
    start,
    wait_for_output,
)


def test_graph_and_options(trained):
    log_dir = trained / "logs" / name
    assert convolutions(log_dir) == 6
    (trial, options), = hparams_of(log_dir)
    assert trial.startswith(name) and options == {
        "epochs": 2, "batch_size": 32, "seed": "1", "augment": False, "fast": False, "precision": "float32"}


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory, trained, tiny):
    """The folder of a run, and of a second one that has the first's name."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("two") / "runs")
    run("train.py", *in_one_go, "--seed", 5, cwd=folder, data=tiny)
    return folder


def test_a_run_and_an_earlier_one_have_a_row_and_a_graph_each(two_runs):
    dated = next(path.name for path in (two_runs / "logs").iterdir() if path.name != name)
    rows = [hparams_of(two_runs / "logs" / run) for run in (dated, name)]
    assert [len(row) for row in rows] == [1, 1] and rows[0][0][0] != rows[1][0][0], "they would share a row"
    assert [row[0][1]["seed"] for row in rows] == ["1", "5"]
    for run_name, epochs in (dated, [0, 1]), (name, [0]):
        assert convolutions(two_runs / "logs" / run_name) == 6
        assert [step for step, value in curves(two_runs / "logs" / run_name)["validation/epoch_accuracy"]] == epochs


@contextlib.contextmanager
def tensorboard(folder):
    """Run TensorBoard on the folder's logs; yield a function that gets JSON from one of its addresses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = folder / "program.py"
    program.write_text("import tensorboard.main; tensorboard.main.run_main()")
    server = start(program, "--logdir=logs", f"--port={port}", cwd=folder, data=folder)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(path, post=None, parse=json.loads):
        data = None if post is None else json.dumps(post).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/data/{path}", data,
                                         {"Content-Type": "application/json"})
        with opener.open(request, timeout=20) as reply:
            return parse(reply.read())
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError):
                if len(get("plugin/scalars/tags")) >= 2:
                    break
            time.sleep(0.5)
        yield get
    finally:
        server.kill()


def test_tensorboard_serves_curves_graph_and_options(two_runs):
    with tensorboard(two_runs) as get:
        dated = next(path.name for path in (two_runs / "logs").iterdir() if path.name != name)
        tags = get("plugin/scalars/tags")
        assert set(tags) == {str(Path(run, part)) for run in (name, dated) for part in ("train", "validation")}
        for run_tags in tags.values():
            assert {"epoch_loss", "epoch_accuracy"} <= set(run_tags)
        graphs = get("plugin/graphs/info")
        for run_name in name, dated:
            train_run = str(Path(run_name, "train"))
            assert graphs[train_run]["run_graph"], "the op graph, which TensorBoard opens first"
            text = get(f"plugin/graphs/graph?run={quote(train_run)}&conceptual=false", parse=bytes.decode)
            assert text.count('op: "Conv2D"') == 6
        query = {"experimentName": "", "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE",
                 "STATUS_RUNNING"], "colParams": [], "startIndex": 0, "sliceSize": 100}
        rows = get("plugin/hparams/session_groups", query)["sessionGroups"]
        assert sorted(row["hparams"]["seed"] for row in rows) == ["1", "5"]
        experiment = get("plugin/hparams/experiment", {"experimentName": ""})
        metrics = {info["name"]["tag"] for info in experiment["metricInfos"]}
        assert {"epoch_accuracy", "epoch_loss"} <= metrics


def test_report_of_a_model_without_logs(trained, data, tmp_path):
    other = tmp_path / f"{name}.h5"
    other.write_bytes((trained / f"results/{name}.h5").read_bytes())
    out, err = run("test.py", other, "--report", cwd=tmp_path, data=data)
    assert err == "" and not (tmp_path / "logs").exists()


def test_curves(trained):
    size, colours = size_and_colours(trained / f"results/{name}.png")
    assert size == (1500, 600) and colours > 50
    rows = list(csv.DictReader((trained / "logs" / name / "epochs.csv").open()))
    assert set(rows[0]) == {"epoch", "accuracy", "loss", "val_accuracy", "val_loss"}


def logged(log_dir):
    """All that is in the event files below a run's folder: {folder: {tag: [(step, value)]}}, without its times."""
    found = {}
    for folder in {path.parent for path in log_dir.rglob("*tfevents*")}:
        events = reader(folder)
        found[folder.name] = {
            tag: [(event.step, event.tensor_proto.SerializeToString()) for event in events.Tensors(tag)]
            for tag in events.Tags()["tensors"] if "hparams" not in tag and tag != "keras"}
    return found


pictures = """    cm = tf.summary.create_file_writer(str(logdir / "cm"))
    def draw(epoch, logs):
        with cm.as_default():
            tf.summary.image("confusion", tf.zeros((1, 8, 8, 3)) + float(epoch) / 8, step=epoch)
        cm.flush()
    callbacks = [tensorboard, keras.callbacks.LambdaCallback(on_epoch_end=draw)]
"""


def test_a_resumed_run_has_logged_each_step_and_epoch_once(tmp_path, tiny):
    """The loss of each step, histograms of the weights at that time, and pictures in an event file of one's own."""
    for folder in tmp_path / "whole", tmp_path / "resumed":
        folder.mkdir()
        train = edited(folder, smaller, ("log_dir=logdir", "log_dir=logdir, histogram_freq=1, update_freq=1"),
                       ("    callbacks = [tensorboard]\n", pictures))
        if folder.name == "resumed":
            for epoch in 2, 4:
                script = start(train, *options, cwd=folder, data=tiny)
                wait_for_output(script, f"Epoch {epoch}/4")
                time.sleep(0.2)
                script.kill()
        out, err = run(train, *options, cwd=folder, data=tiny)
        assert "The earlier run" not in out and err == ""
    whole, resumed = (logged(tmp_path / folder / "logs" / name) for folder in ("whole", "resumed"))
    assert whole.keys() == resumed.keys() == {"train", "validation", "cm"}
    for folder in whole:
        assert whole[folder].keys() == resumed[folder].keys()
        for tag in whole[folder]:
            assert whole[folder][tag] == resumed[folder][tag], tag
    assert [step for step, value in resumed["train"]["batch_loss"]] == list(range(1, 13))
    assert [step for step, value in resumed["cm"]["confusion"]] == [0, 1, 2, 3]


killer = """
    def kill(epoch, logs):
        if epoch == 2 and not Path("killed").exists():
            Path("killed").touch()
            import os, signal
            os.kill(os.getpid(), signal.SIGKILL)
    callbacks += [keras.callbacks.LambdaCallback(on_epoch_end=kill), checkpoint]
"""


@posix
@rare
def test_a_run_that_is_killed_before_its_checkpoint_and_after_its_logs(tmp_path, tiny, undisturbed):
    train = edited(tmp_path, ("    callbacks += [checkpoint]", killer))
    assert start(train, *options, cwd=tmp_path, data=tiny).wait() and (tmp_path / "killed").exists()
    assert len((tmp_path / "logs" / name / "epochs.csv").read_text().splitlines()) == 4
    out, err = run(train, *options, cwd=tmp_path, data=tiny)
    assert "Resuming after epoch 2 of 4" in out and err == ""
    assert curves(tmp_path / "logs" / name) == curves(undisturbed / "logs" / name)
    csv = f"logs/{name}/epochs.csv"
    assert (tmp_path / csv).read_text() == (undisturbed / csv).read_text()


second_fit = """    model.compile(loss="sparse_categorical_crossentropy", optimizer="sgd", metrics=["accuracy"])
    model.fit(ds_train, epochs=args.epochs, validation_data=ds_test, verbose=2, steps_per_epoch=steps_per_epoch,
              callbacks=callbacks)

    # save the model
"""


@posix
@rare
def test_a_second_fit_begins_after_the_first_one(tmp_path, tiny):
    """Two phases of training with the same callbacks. The checkpoint is that of the first; no epoch is logged twice."""
    train = edited(tmp_path, smaller, ("    # save the model\n", second_fit))
    two = ["--epochs", 2, "--batch-size", 20, "--seed", 1]
    script = start(train, *two, cwd=tmp_path, data=tiny)
    while script.output()[0].count("Epoch 2/2") < 2:
        assert script.poll() is None, script.output()
        time.sleep(0.01)
    out, err = interrupt(script)
    assert err == "\nStopped after epoch 2 of 2; to resume, run the same command again.\n"
    out, err = run(train, *two, cwd=tmp_path, data=tiny)
    assert "Resuming after epoch 2 of 2" in out and out.count("Epoch 1/2") == out.count("Epoch 2/2") == 1 and err == ""
    rows = list(csv.DictReader((tmp_path / "logs" / name / "epochs.csv").open()))
    assert [row["epoch"] for row in rows] == ["0", "1", "0", "1"] and not (tmp_path / checkpoint).exists()
    steps = [step for step, value in curves(tmp_path / "logs" / name)["train/epoch_loss"]]
    assert steps == [0, 1, 0, 1], "as Keras numbers them"


@rare
def test_a_run_without_tensorboard_is_resumed(tmp_path, tiny):
    train = edited(tmp_path, smaller, ("    callbacks = [tensorboard]", "    callbacks = []"))
    script = start(train, *options, cwd=tmp_path, data=tiny)
    wait_for_output(script, "Epoch 3/4")
    script.kill()
    out, err = run(train, *options, cwd=tmp_path, data=tiny)
    assert "Resuming after epoch" in out and "could not" not in out and err == ""
    rows = list(csv.DictReader((tmp_path / "logs" / name / "epochs.csv").open()))
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]


added_options = """    parser.add_argument("--lr", type=float)
    parser.add_argument("--sizes", nargs="*", default=[1, 2])
    parser.add_argument("--folder", type=Path, default=Path("somewhere"))
    args = parser.parse_args("""


@rare
def test_options_and_a_log_folder_of_ones_own(tmp_path, tiny):
    """None, a list and a Path are logged as text; the folder is a str, with the date, as other tutorials have it."""
    train = edited(tmp_path, smaller, ("    args = parser.parse_args(", added_options),
                   ('    logdir = Path("logs", args.name)', '    logdir = "logs/fit/" + "20261128-120000"'))
    script = start(train, *options, cwd=tmp_path, data=tiny)
    wait_for_output(script, "Epoch 3/4")
    script.kill()
    out, err = run(train, *options, cwd=tmp_path, data=tiny)
    assert "Resuming after epoch" in out and err == ""
    (trial, logged_options), = hparams_of(tmp_path / "logs/fit/20261128-120000")
    assert {"lr": "None", "sizes": "[1, 2]", "folder": "somewhere"}.items() <= logged_options.items()
    out, err = run(train, *options, "--lr", "0.1", cwd=tmp_path, data=tiny)
    assert "The model is in" in out and err == ""
