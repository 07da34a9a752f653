"""test.py, whole: what it prints and that the saved model is the trained one."""
import csv
import json
import re

import numpy as np
import pytest

from conftest import name, root, run, start, take


def test_test_prints_the_tutorials_lines(folder, data):
    categories = "airplane|automobile|bird|cat|deer|dog|frog|horse|ship|truck"
    program = folder / "twice.py"
    program.write_text(f"import sys; sys.path[0] = {str(root)!r}; import test\n"
                       "for name in 'ab': test.main(); "
                       f"test.Path('results/{name}-sample.png').rename(name + '.png')")
    accuracies = set()
    for script in program, "test.py":
        out, err = run(script, cwd=folder, data=data)
        assert err == ""
        found = re.findall(rf"^7/7 .*\nTest accuracy: (\d+\.\d+) %\nPredicted label: ({categories})\n"
                           rf"True label: ({categories})\nPicture saved as results/{name}-sample.png\n", out, re.M)
        assert len(found) == (2 if script == program else 1), out
        accuracies |= {row[0] for row in found}
    assert len(accuracies) == 1, "the same model and images, another accuracy"
    pictures = {path.read_bytes() for path in [*folder.glob("?.png"), folder / f"results/{name}-sample.png"]}
    assert len(pictures) > 1, "always the same sample"
    rows = list(csv.DictReader((folder / "logs" / name / "epochs.csv").open()))
    assert float(accuracies.pop()) / 100 == pytest.approx(float(rows[-1]["val_accuracy"]), abs=1e-6)


def test_saved_model_predicts_the_same_in_a_new_process(trained, load, tmp_path):
    import keras
    images, labels = take(load()[1], 50)
    np.save(tmp_path / "images.npy", images)
    program = tmp_path / "program.py"
    program.write_text("import sys, numpy, keras; model = keras.models.load_model(sys.argv[1])\n"
                       "print(model.predict(numpy.load(sys.argv[2]), verbose=0).tolist())")
    model_file = trained / f"results/{name}.h5"
    out, err = start(program, model_file, tmp_path / "images.npy", cwd=tmp_path, data=tmp_path).wait()
    model = keras.models.load_model(trained / f"results/{name}.h5", compile=False)
    np.testing.assert_allclose(json.loads(out), model.predict(images, verbose=0), atol=1e-6)
