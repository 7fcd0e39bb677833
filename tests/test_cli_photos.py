"""``colorseg colorize``, ``segment``, ``palette``, ``train`` and ``evaluate``, end to end."""

import json
import weakref

import numpy as np
import pytest
from photo_cases import save_segmenter
from PIL import Image

from colorseg.cli import main
from colorseg.palette import Palette
from colorseg.photos.reading import read_photo
from colorseg.training import Config


def picture(path, size=(40, 60)):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.RandomState(0).randint(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def test_colorize_writes_pictures_and_comparisons(tmp_path, capsys):
    source = picture(tmp_path / "in" / "an ünusual name.png")
    out = tmp_path / "out"
    assert (
        main(["colorize", str(source), "-o", str(out), "--compare", "--decode", "mean", "--whole"])
        == 0
    )
    names = ["an ünusual name-compare.png", "an ünusual name.png"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert sorted(capsys.readouterr().out.splitlines()) == [str(out / name) for name in names]
    with Image.open(out / names[0]) as both, Image.open(out / names[1]) as colored:
        assert both.size == (120, 40)
        assert colored.size == (60, 40)


def test_a_folder_with_broken_files(tmp_path, capsys):
    for name in ("a.png", "deep/b.jpg", "c.webp", "d.png"):
        picture(tmp_path / "in" / name)
    (tmp_path / "in" / "c.webp").write_bytes(b"broken")
    content = (tmp_path / "in" / "d.png").read_bytes()
    (tmp_path / "in" / "d.png").write_bytes(content[:200])
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    arguments = ["colorize", str(tmp_path / "in"), str(tmp_path / "gone.png"), "--json"]
    assert main([*arguments, "-o", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    outcomes = {o["input"]: o for o in json.loads(said.out)}
    assert len(outcomes) == 5
    failed = {path for path, o in outcomes.items() if o["error"]}
    assert failed == {str(tmp_path / n) for n in ("in/c.webp", "in/d.png", "gone.png")}
    assert all(path in said.err for path in failed)
    assert "3 of 5 pictures failed" in said.err
    assert "Traceback" not in said.err
    written = [p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*.*")]
    assert sorted(map(str, written)) == ["a.png", "deep/b.jpg"]


def test_many_pictures_one_after_the_other(tmp_path, capsys, monkeypatch):
    """The three broken ones are named; nothing of the others is kept in memory."""
    folder, photos, alive = tmp_path / "in", [], []

    def watched(picture, *arguments, **options):
        photo = read_photo(picture, *arguments, **options)
        photos.append(weakref.ref(photo))
        alive.append(sum(kept() is not None for kept in photos))
        return photo

    monkeypatch.setattr("colorseg.photos.reading.read_photo", watched)
    first = picture(folder / "000.png", (8, 8))
    for i in range(1, 300):
        (folder / f"{i:03}.png").write_bytes(first.read_bytes())
    for name in ("007.png", "123.png", "299.png"):
        (folder / name).write_bytes(b"broken")
    out = tmp_path / "out"
    assert main(["colorize", str(folder), "-o", str(out)]) == 1
    *errors, summary = capsys.readouterr().err.strip().splitlines()[-4:]
    assert [error.split(" is no")[0] for error in errors] == [
        f"error: {folder / name}" for name in ("007.png", "123.png", "299.png")
    ]
    assert summary == "3 of 300 pictures failed"
    assert len([*out.iterdir()]) == 297
    assert len(alive) == 297
    assert max(alive) <= 2


def test_the_input_is_never_overwritten(tmp_path, capsys):
    source = picture(tmp_path / "a.png")
    before = source.read_bytes()
    assert main(["colorize", str(source), "-o", str(tmp_path)]) == 1
    assert "would overwrite the picture" in capsys.readouterr().err
    assert source.read_bytes() == before


def test_two_pictures_of_one_name(tmp_path, capsys):
    a, b = picture(tmp_path / "x" / "a.png"), picture(tmp_path / "y" / "a.png")
    assert main(["colorize", str(a), str(b), "-o", str(tmp_path / "out")]) == 2
    assert "would both be written to" in capsys.readouterr().err


def test_results_of_one_name(segmenter, tmp_path, capsys):
    """Two masks, and a comparison and a picture that has its name."""
    a, b, out = tmp_path / "a.jpg", tmp_path / "a.png", tmp_path / "out"
    c, d = tmp_path / "b.jpg", tmp_path / "b-compare.jpg"
    flags = ["-o", str(out), "--weights", str(segmenter)]
    assert main(["segment", str(picture(a)), str(picture(b)), *flags]) == 2
    said = f"{a} and {b} would both be written to {out / 'a-mask.png'}; rename one, or write"
    assert said in capsys.readouterr().err
    assert main(["colorize", str(picture(c)), str(picture(d)), "-o", str(out), "--compare"]) == 2
    said = f"{c} and {d} would both be written to {out / 'b-compare.jpg'}; rename one, or write"
    assert said in capsys.readouterr().err
    assert main(["colorize", str(c), str(d), "-o", str(out)]) == 0


def test_results_of_an_earlier_run_are_no_sources(tmp_path, capsys):
    picture(tmp_path / "in" / "a.png")
    picture(tmp_path / "in" / "colored-by-hand" / "b.png")
    out = tmp_path / "in" / "colored"
    for _ in range(2):
        assert main(["colorize", str(tmp_path / "in"), "-o", str(out), "--json"]) == 0
        inputs = [outcome["input"] for outcome in json.loads(capsys.readouterr().out)]
        assert inputs == [str(tmp_path / "in" / n) for n in ("a.png", "colored-by-hand/b.png")]
    picture(tmp_path / "in" / "more" / "c.png")  # in the output folder's own place
    assert main(["colorize", str(tmp_path / "in" / "more"), "-o", str(tmp_path / "in")]) == 0
    assert (tmp_path / "in" / "c.png").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--weights", "nope"], "there is no weights file nope"),
        (["--temperature", "-1"], "temperature must be above 0"),
        (["--side", "3"], "side must be at least 8"),
        (["--device", "gpu"], "device gpu cannot be used"),
        (["--max-pixels", "100"], "60 x 40 = 2,400 pixels, more than the 100 allowed"),
    ],
)
def test_mistakes(flags, message, tmp_path, capsys):
    source = picture(tmp_path / "a.png")
    assert main(["colorize", str(source), "-o", str(tmp_path / "out"), *flags]) in (1, 2)
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_nothing_to_do(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["colorize", str(tmp_path / "empty"), "-o", str(tmp_path / "out")]) == 2
    assert "there are no pictures in" in capsys.readouterr().err


def test_an_output_that_is_a_file(tmp_path, capsys):
    source = picture(tmp_path / "a.png")
    (tmp_path / "out").write_text("a file")
    assert main(["colorize", str(source), "-o", str(tmp_path / "out")]) == 2
    assert "cannot write to the folder" in capsys.readouterr().err


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    return save_segmenter(tmp_path_factory.mktemp("weights") / "model.safetensors")


def test_segment(segmenter, tmp_path, capsys):
    source, out = picture(tmp_path / "a.jpg"), tmp_path / "out"
    flags = ["--weights", str(segmenter), "--json"]
    assert main(["segment", str(source), "-o", str(out), *flags]) == 0
    (outcome,) = json.loads(capsys.readouterr().out)
    assert outcome["outputs"] == [str(out / "a-mask.png"), str(out / "a-overlay.jpg")]
    assert sum(outcome["classes"].values()) == pytest.approx(1, abs=1e-3)
    with Image.open(out / "a-mask.png") as mask:
        assert mask.size == (60, 40)
        labels = np.array(mask)
    assert (labels == 1).mean() == pytest.approx(outcome["classes"]["flower"], abs=1e-3)
    assert main(["evaluate", str(segmenter), "--image-size", "32", "--json"]) == 0
    assert 0 <= json.loads(capsys.readouterr().out)["miou"] <= 1


def test_evaluate_shipped_weights(capsys):
    assert main(["evaluate", "horse24", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert 0 < figures["accuracy"] < 1
    assert figures["pixels"] == 240 * 32 * 32
    assert figures["accuracy"] < figures["top5"] < 1
    assert figures["psnr grey"] < figures["psnr palette"]


def test_evaluate_writes_json_where_a_figure_is_infinite(tmp_path, capsys):
    black = np.zeros((2, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "black.npz", train=black, test=black)
    assert main(["evaluate", "horse24", "--data", str(tmp_path / "black.npz"), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert figures["psnr grey"] is None


def test_palette_fit_and_show(tmp_path, capsys):
    file, drawing = tmp_path / "p.json", tmp_path / "p.png"
    assert main(["palette", "fit", "sample", "-k", "5", "-o", str(file)]) == 0
    assert len(Palette.load(file)) == 5
    capsys.readouterr()
    assert main(["palette", "show", str(file), "-o", str(drawing)]) == 0
    lines = capsys.readouterr().out.split()
    with Image.open(drawing) as image:
        drawn = [bytes(image.getpixel((32 * i, 5))).hex() for i in range(5)]
    assert drawn == lines
    assert main(["palette", "show", "general"]) == 0
    assert len(capsys.readouterr().out.split()) == 32
    assert main(["palette", "show", "nope"]) == 2
    assert "there is no palette nope" in capsys.readouterr().err


def test_train_with_a_file_of_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = tmp_path / "run.toml"
    settings.write_text('epochs = 3\nnum_filters = 2\nbatch_size = 400\nschedule = "poly"\n')
    flags = ["--config", str(settings), "--epochs", "1", "--flips", "--out", "run"]
    assert main(["train", "conv_transpose", *flags]) == 0
    config = Config.load("run/config.json")
    assert (config.epochs, config.num_filters, config.schedule) == (1, 2, "poly")
    assert config.flips
    assert config.network == "conv_transpose"


def test_train_on_a_folder_of_photographs(tmp_path, capsys):
    for i in range(10):
        picture(tmp_path / "photos" / f"{i}.jpg", (30 + i, 50))
    data, run = str(tmp_path / "photos"), str(tmp_path / "run")
    sizes = ["--image-size", "16", "--short-side", "20"]
    flags = ["--data", data, *sizes, "--epochs", "1", "--num-filters", "2"]
    assert main(["train", "unet", *flags, "--out", run]) == 0
    capsys.readouterr()
    weights = f"{run}/model.safetensors"
    assert main(["evaluate", weights, "--data", data, *sizes, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pixels"] == 2 * 16 * 16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", "has the unknown setting epoch; known are data, epochs"),
        ("epochs = 0", "epochs must be a whole number, at least 1, got 0"),
        ("epochs =", "is no TOML file"),
        ("classes = true", "classes must be names or numbers of classes, got True"),
        ("classes = 7.5", "classes must be names or numbers of classes, got 7.5"),
        ("lr = 1" + 400 * "0", "lr must be a number above 0"),
        ("lr = " + 5000 * "[", "is no TOML file"),
    ],
)
def test_mistakes_in_settings(text, message, tmp_path, capsys):
    (tmp_path / "run.toml").write_text(text)
    assert main(["train", "unet", "--config", str(tmp_path / "run.toml")]) == 2
    assert message in capsys.readouterr().err
