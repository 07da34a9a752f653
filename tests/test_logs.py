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

from conftest import convolutions, curves, hparams_of, in_one_go, name, run, size_and_colours, start


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
