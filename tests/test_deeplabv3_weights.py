"""Weights of DeepLabV3: files of one's own, published ones, and what does not fit."""

import hashlib
import logging

import pytest
import torch
from conftest import assert_close

from colorseg import models
from colorseg.models import pretrained


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(1)
    return models.deeplabv3("resnet18", 5, aux=True)


@pytest.fixture(params=[".pth", ".safetensors"])
def file(request, trained, tmp_path):
    path = tmp_path / f"trained{request.param}"
    if request.param == ".pth":
        torch.save(trained.state_dict(), path)
    else:
        models.save_weights(trained, path)
    return path


def assert_same(model, trained, but=()):
    want = trained.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, want[name]) == (name.rpartition(".")[0] not in but), name


@pytest.mark.parametrize("aux", [True, False])
def test_a_file_loads_as_it_is(file, trained, aux, caplog):
    model = models.deeplabv3("resnet18", 5, aux=aux, weights=file)
    assert_same(model, trained)
    assert not caplog.records


def test_other_classes_leave_the_last_layers_random(file, trained, caplog):
    model = models.deeplabv3("resnet18", 2, aux=True, weights=file)
    want = trained.state_dict()
    for name, tensor in model.state_dict().items():
        fits = tensor.shape == want[name].shape
        assert fits == (".4." not in name or name.startswith(("backbone", "classifier.0")))
        assert not fits or torch.equal(tensor, want[name])
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    words = "is of 5 classes, not 2: classifier.4 and aux_classifier.4 starts from random weights"
    assert words in record.getMessage()


def changed(trained, tmp_path, change):
    state = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    change(state)
    torch.save(state, tmp_path / "changed.pth")
    return tmp_path / "changed.pth"


def cut(state):
    state["classifier.1.weight"] = state["classifier.1.weight"][:, :7].clone()


WRONG = {
    "missing": (lambda s: s.pop("classifier.2.bias"), r"\(missing: classifier\.2\.bias\)"),
    "extra": (lambda s: s.update(extra=torch.ones(1)), r"\(unknown: extra\)"),
    "shape": (cut, r"another shape: classifier\.1\.weight"),
    "a classifier": (
        lambda s: [s.pop(k) for k in list(s) if k.startswith("classifier")],
        "does not hold the weights of a DeepLabV3 with a ResNet: it has no backbone.layer1.0",
    ),
    "deeper": (
        lambda s: s.update({"backbone.layer3.2.conv1.weight": torch.ones(1)}),
        r"of a DeepLabV3 with layers of \(2, 2, 3, 2\) blocks, not with resnet18",
    ),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_named(trained, tmp_path, change, message):
    path = changed(trained, tmp_path, change)
    with pytest.raises(ValueError, match=message):
        models.deeplabv3("resnet18", 5, aux=True, weights=path)


def test_weights_of_another_backbone(file):
    with pytest.raises(ValueError, match=r"with resnet18, not with resnet34; pass backbone='resn"):
        models.deeplabv3("resnet34", 5, weights=file)


def test_weights_without_a_second_head(trained, tmp_path):
    def drop(state):
        for name in [name for name in state if name.startswith("aux")]:
            del state[name]

    path = changed(trained, tmp_path, drop)
    assert_same(models.deeplabv3("resnet18", 5, weights=path), trained)
    with pytest.raises(ValueError, match=r"missing: aux_classifier\.0\.weight, .*"):
        models.deeplabv3("resnet18", 5, aux=True, weights=path)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_a_file_fixes_the_output_stride(output_stride, tmp_path):
    path = tmp_path / "net.safetensors"
    models.save_weights(models.deeplabv3("resnet18", 2, output_stride=output_stride), path)
    for given in (None, output_stride):
        model = models.deeplabv3("resnet18", 2, output_stride=given, weights=path)
        assert model.output_stride == output_stride
    with pytest.raises(ValueError, match=rf"output_stride={output_stride}, but .*; leave it out"):
        models.deeplabv3("resnet18", 2, output_stride=24 - output_stride, weights=path)


def test_a_state_dict_leaves_the_output_stride_open(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "net.pth")
    for given, stride in ((None, 8), (8, 8), (16, 16)):
        model = models.deeplabv3("resnet18", 5, output_stride=given, weights=tmp_path / "net.pth")
        assert model.output_stride == stride


def test_no_such_file():
    with pytest.raises(FileNotFoundError, match=r"there is no weights file nowhere\.pth"):
        models.deeplabv3("resnet18", weights="nowhere.pth")


class Server:
    """Stands for pooch: sends ``content``, and counts."""

    def __init__(self, content):
        self.content, self.urls = content, []

    def retrieve(self, url, known_hash, fname, path, progressbar):
        self.urls.append(url)
        path.mkdir(parents=True, exist_ok=True)
        (path / fname).write_bytes(self.content)


@pytest.fixture
def published(file, tmp_path, monkeypatch):
    """A server that has the trained file under the name of a published one."""
    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:8]
    url = f"https://example.org/deeplabv3_resnet18_coco-{digest}{file.suffix}"
    monkeypatch.setitem(pretrained.COCO, "resnet18", url)
    monkeypatch.setenv("COLORSEG_CACHE", str(tmp_path / "cache"))
    server = Server(content)
    monkeypatch.setattr("pooch.retrieve", server.retrieve)
    return server


def test_coco_is_downloaded_once(published, trained, tmp_path):
    for _ in range(2):
        assert_same(models.deeplabv3("resnet18", 5, aux=True, weights="coco"), trained)
    assert len(published.urls) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_download_with_another_checksum_is_not_kept(published, tmp_path):
    published.content += b"?"
    with pytest.raises(ValueError, match=r"was not kept, since its sha256 does not start with"):
        models.deeplabv3("resnet18", 5, weights="coco")
    assert not list((tmp_path / "cache").iterdir())


def test_a_damaged_file_in_the_cache_is_named(published, tmp_path):
    models.deeplabv3("resnet18", 5, weights="coco")
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(b"?")
    with pytest.raises(ValueError, match=r"is damaged, since its sha256 .*: delete it"):
        models.deeplabv3("resnet18", 5, weights="coco")


def test_a_failed_download_says_what_to_do(published, monkeypatch):
    def fail(*args, **options):
        raise OSError("no route to host")

    monkeypatch.setattr("pooch.retrieve", fail)
    with pytest.raises(OSError, match=r"cannot download https.*no route to host; or pass the path"):
        models.deeplabv3("resnet18", 5, weights="coco")


def test_published_files_are_those_of_torchvision(torchvision):
    segmentation = torchvision.models.segmentation
    for name, url in pretrained.COCO.items():
        weights = getattr(segmentation, f"DeepLabV3_{name.replace('resnet', 'ResNet')}_Weights")
        assert weights.DEFAULT.url == url
    with pytest.raises(ValueError, match="no published weights for resnet18, only for resnet50, r"):
        models.deeplabv3("resnet18", weights="coco")


def test_a_loaded_network_computes_the_same(trained, file):
    model = models.deeplabv3("resnet18", 5, weights=file).eval()
    x = torch.randn(1, 3, 20, 20)
    trained.eval()
    assert_close(model(x)["out"], trained(x)["out"])


def test_a_name_that_is_not_there():
    with pytest.raises(FileNotFoundError, match=r"no weights file imagenet; .* the names coco$"):
        models.deeplabv3("resnet18", weights="imagenet")
