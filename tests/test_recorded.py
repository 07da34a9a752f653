"""The models and logs that come with the project."""
import csv
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from conftest import convolutions, curves, hparams_of, name, reader, root, run

best = "fast-augment-30-epochs"
recorded = ["tutorial-30-epochs", "fast", best]


@pytest.mark.parametrize("model_name", recorded)
def test_recorded_model(model_name):
    import keras
    model_file = root / "results" / f"{model_name}.h5"
    assert model_file.stat().st_size < 10_000_000
    model = keras.models.load_model(model_file)
    assert model.count_params() == 2395434
    assert (model.input_shape, model.output_shape) == ((None, 32, 32, 3), (None, 10))
    probabilities = model.predict(np.random.default_rng(0).random((3, 32, 32, 3), np.float32), verbose=0)
    assert probabilities.sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_it_knows_the_drawings_without_data_or_training(tmp_path):
    """By README's command."""
    text = (root / "README.md").read_text(encoding="utf-8")
    arguments = re.search(r"(?m)^    python test\.py (.*--image .*)", text)[1].split()
    for file in arguments[0], arguments[-1]:
        target = tmp_path / file
        target.parent.mkdir(exist_ok=True)
        shutil.copytree(root / file, target) if (root / file).is_dir() else shutil.copy(root / file, target)
    out, err = run("test.py", *arguments, cwd=tmp_path, data=tmp_path / "no data")
    answers = re.findall(r"(?m)^tests/drawings/(\w+)\.png: (\w+) \(\2 [\d.]+%, \w+ [\d.]+%, \w+ [\d.]+%\)$", out)
    assert answers == [("airplane", "airplane"), ("car", "automobile"), ("ship", "ship")] and err == ""


@pytest.mark.parametrize("run_name", recorded)
def test_recorded_logs_are_whole(run_name):
    log_dir = root / "logs" / run_name
    (trial, options), = hparams_of(log_dir)
    assert trial.startswith(f"{run_name} 2")  # the name, then the date
    commands = re.findall(rf"`python (train\.py .*--name {run_name})`", (root / "results/README.md").read_text("utf-8"))
    assert len(commands) == 1
    for option in "fast", "augment":
        assert options[option] == (f"--{option}" in commands[0])
    found = curves(log_dir)
    for part in "train", "validation":
        assert {f"{part}/epoch_loss", f"{part}/epoch_accuracy"} <= set(found)
    for key, values in found.items():
        assert [step for step, value in values] == list(range(int(options["epochs"]))), key
    rows = list(csv.DictReader((log_dir / "epochs.csv").open()))
    last = float(rows[-1]["val_accuracy"])
    assert len(rows) == options["epochs"] and last == pytest.approx(found["validation/epoch_accuracy"][-1][1])
    assert f"{last * 100:.2f}" in (root / "results/README.md").read_text(encoding="utf-8")
    assert convolutions(log_dir) == 6


def test_no_picture_of_the_data_set_is_recorded():
    if not shutil.which("git"):
        pytest.skip("there is no git here, as under Wine")
    tracked = subprocess.run(["git", "ls-files", "logs", "results"], cwd=root, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("this is not a checkout")
    files = [Path(file) for file in tracked.stdout.split()]
    assert {file.parts[2] for file in files if file.parts[0] == "logs"} == {"epochs.csv", "train", "validation"}
    assert {file.name for file in files if file.parts[0] == "results"} == {
        "README.md", *(run + ending for run in recorded for ending in (".h5", ".png"))}
    for folder in {root / file.parent for file in files if "tfevents" in file.name}:
        plugins = {content.plugin_data.plugin_name for content in reader(folder).summary_metadata.values()}
        assert plugins <= {"scalars", "hparams", "graph_keras_model"}, plugins


def test_recorded_runs_are_not_where_new_ones_go():
    """So a fresh clone stays clean, and its first training finds no earlier run."""
    assert name not in recorded
