"""The model that comes with the project."""
import re
import shutil

import numpy as np
import pytest
from PIL import Image, ImageDraw

from conftest import curves, name, root, run

model_file = root / "results" / f"{name}.h5"
pytestmark = pytest.mark.skipif(not model_file.exists(), reason="this checkout has no recorded model")


def test_recorded_model():
    import keras
    model = keras.models.load_model(model_file, compile=False)
    assert model.count_params() == 2395434
    assert (model.input_shape, model.output_shape) == ((None, 32, 32, 3), (None, 10))
    probabilities = model.predict(np.random.default_rng(0).random((3, 32, 32, 3), np.float32), verbose=0)
    assert probabilities.sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_it_labels_a_drawing_without_data_or_training(tmp_path):
    (tmp_path / "results").mkdir()
    shutil.copy(model_file, tmp_path / "results")
    picture = Image.new("RGB", (300, 200), (150, 190, 230))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 130, 300, 200), fill=(40, 90, 130))
    draw.polygon([(60, 115), (250, 115), (230, 145), (75, 145)], fill=(60, 30, 30))
    draw.rectangle((90, 95, 200, 115), fill=(240, 240, 240))
    picture.save(tmp_path / "drawing.png")
    out, err = run("test.py", "--image", "drawing.png", cwd=tmp_path, data=tmp_path / "no data")
    assert re.match(r"drawing\.png: (\w+) \(\1 [\d.]+%, \w+ [\d.]+%, \w+ [\d.]+%\)\n", out) and err == ""


def test_recorded_curves_are_whole():
    for key, values in curves(root / "logs" / name).items():
        if key.endswith(("_loss", "_accuracy")):
            assert [step for step, value in values] == list(range(30)), key
