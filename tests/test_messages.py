"""Every mistake is answered in one to four lines, with the right exit code, and does no damage."""
import os
import sys

import pytest

from conftest import in_one_go, message, run, run_after


@pytest.mark.parametrize("arguments", [
    ["--epochs", "0"], ["--epochs", "-3"], ["--epochs", "many"], ["--epochs", "1.5"], ["--batch-size", "0"],
    ["--batch-size", "50001"], ["--seed", "-1"], ["--seed", str(2**32)], ["--name", ""], ["--name", "../x"],
    ["--name", "/x"], ["--name", "a/b"], ["--name", "a\\b"], ["--name", ".."], ["--name", ".hidden"],
    ["--name", "dot."], ["--name", 51 * "a"], ["--colour"], ["--rest"]])
def test_bad_options(arguments, tmp_path, monkeypatch, capsys):
    import train
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        train.parse_args()
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and message(err) and arguments[0] in err
    assert list(tmp_path.iterdir()) == []


def test_bad_option_in_a_process(tmp_path, tiny):
    out, err = run("train.py", "--epochs", "0", cwd=tmp_path, data=tiny, code=2)
    assert out == "" and "--epochs" in message(err) and list(tmp_path.iterdir()) == []


def test_batch_larger_than_the_split(tmp_path, tiny):
    out, err = run("train.py", "--batch-size", 71, cwd=tmp_path, data=tiny, code=1)
    assert "--batch-size 71" in message(err)


@pytest.mark.skipif(os.name != "posix", reason="TensorFlow for Windows cannot write to such names")
def test_a_console_that_lacks_the_characters_of_a_name(tmp_path, tiny):
    out, err = run_after("sys.stdout.reconfigure(encoding='cp1252', errors='strict')", "train.py", *in_one_go,
                         "--name", "日本", cwd=tmp_path, data=tiny)
    assert err == "" and "The model is in results/??.h5" in out and (tmp_path / "results/日本.h5").exists()


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGPIPE")
def test_a_reader_that_has_read_enough(small_model, tmp_path, tiny):
    out, err = run_after("import os; ours, its = os.pipe(); os.dup2(its, 1); os.close(ours)", "test.py", small_model,
                         cwd=tmp_path, data=tiny, code=1)
    assert err == ""
