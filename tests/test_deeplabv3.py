"""DeepLabV3 against a twin in plain torch, and what it promises beside."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_close
from plain_deeplab import PlainDeepLab
from plain_twins import count_fused_calls
from torch import nn

import colorseg
from colorseg import models

pytestmark = pytest.mark.every_device

CLASSES = 3


def pair(backbone="resnet18", dtype=torch.float64, **options):
    """Ours and its twin with the same weights, batch norms away from their initial state."""
    ours = models.deeplabv3(backbone, CLASSES, **options).to(dtype)
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
    plain = PlainDeepLab(backbone, CLASSES, **options).to(dtype)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def without_dropout(*models):
    """Its masks are drawn in the order of memory, which differs."""
    for module in (module for model in models for module in model.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def images(n=2, height=41, width=50, dtype=torch.float64):
    return torch.randn(n, 3, height, width, dtype=dtype)


def loss_of(model, x):
    """The fine-tuning loss."""
    target = torch.arange(x.shape[0] * x.shape[2] * x.shape[3]).view(-1, *x.shape[2:]) % CLASSES
    logits = model(x)
    return sum(F.cross_entropy(value, target) for value in logits.values()), logits


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_trains_like_its_plain_twin(backbone, output_stride, layout, monkeypatch):
    fused_calls = count_fused_calls(monkeypatch)
    ours, plain = pair(backbone, output_stride=output_stride, aux=True)
    without_dropout(ours, plain)
    x = images().contiguous(memory_format=layout)
    results = []
    for model in (ours, plain):
        loss, logits = loss_of(model, x)
        loss.backward()
        results.append((loss, *logits.values()))
    assert list(logits) == ["out", "aux"]
    for got, want in zip(*results, strict=True):
        assert_close(got, want)
    for (name, p), q in zip(ours.named_parameters(), plain.parameters(), strict=True):
        assert p.grad is not None, name
        assert_close(p.grad, q.grad)
    for name, tensor in plain.state_dict().items():
        assert_close(ours.state_dict()[name], tensor, torch.float64)
    assert len(fused_calls) == sum(isinstance(m, nn.BatchNorm2d) for m in ours.modules())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_float32_outputs(layout):
    ours, _ = pair("resnet50", torch.float32)
    exact = PlainDeepLab("resnet50", CLASSES).double()
    exact.load_state_dict(ours.state_dict())
    ours.eval(), exact.eval()
    x = images(dtype=torch.float32).contiguous(memory_format=layout)
    y = ours(x)["out"]
    assert y.is_contiguous(memory_format=layout)
    assert_close(y, exact(x.double())["out"])
    with torch.inference_mode():
        assert_close(ours(x)["out"], y)


def test_float32_gradients_are_as_exact_as_those_of_torch():
    """ReLUs flip in float32 whoever computes, so what is compared is the distance to float64; one
    flip more may be off by a thousandth.
    """
    ours, plain = pair(dtype=torch.float32)
    without_dropout(ours, plain)
    exact, x = copy.deepcopy(plain).double(), images(3, dtype=torch.float32)
    gradients = []
    for model, batch in ((exact, x.double()), (ours, x), (plain, x)):
        loss_of(model, batch)[0].backward()
        gradients.append(torch.cat([p.grad.double().flatten() for p in model.parameters()]))
    want, got, torchs = gradients
    assert (got - want).norm() < max(2 * (torchs - want).norm(), 1e-3 * want.norm())


@pytest.mark.parametrize(
    ("backbone", "aux", "count"),
    [
        ("resnet50", True, 42_004_074),
        ("resnet101", True, 60_996_202),
        ("resnet50", False, 39_638_869),
        ("resnet18", True, 16_053_034),
    ],
)
def test_counts_keys_and_shapes(backbone, aux, count):
    with torch.device("meta"):
        ours = models.deeplabv3(backbone, aux=aux)
        plain = PlainDeepLab(backbone, 21, aux=aux)
    assert sum(p.numel() for p in ours.parameters()) == count
    got, want = ours.state_dict(), plain.state_dict()
    assert list(got) == list(want)
    assert [v.shape for v in got.values()] == [v.shape for v in want.values()]


def test_initial_weights_are_those_of_a_resnet():
    model = models.deeplabv3("resnet18", CLASSES)
    conv = model.backbone["layer3"][1].conv2
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)
    assert model.backbone["bn1"].weight.eq(1).all()


def test_unfuse_gives_plain_torch_and_fuse_the_blocks_back():
    model = models.deeplabv3("resnet18", CLASSES, aux=True).eval()
    x = images(1, dtype=torch.float32)
    before, classes, text = model(x)["out"], [type(m) for m in model.modules()], repr(model)
    plain = colorseg.unfuse(model)
    assert not any(type(m).__module__.startswith("colorseg.nn") for m in plain.modules())
    assert_close(plain(x)["out"], before)
    assert repr(plain) == text.replace("FusedSequential", "Sequential")
    assert [type(m) for m in colorseg.fuse(model).modules()] == classes


def test_copies(tmp_path):
    model = models.deeplabv3("resnet18", CLASSES).eval()
    x = images(1, dtype=torch.float32)
    torch.save(model, tmp_path / "model.pt")
    for other in (copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)):
        assert [type(m) for m in other.modules()] == [type(m) for m in model.modules()]
        assert torch.equal(other(x)["out"], model(x)["out"])


def test_compiles_whole():
    model = models.deeplabv3("resnet18", CLASSES).double().eval()
    x = images(1)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_close(compiled(x)["out"], model(x)["out"])


def test_summary_counts_it():
    summary = models.summary(models.deeplabv3("resnet18", 21, aux=True), (3, 32, 32))
    assert summary.parameters == 16_053_034


def test_a_batch_of_one_is_refused_in_training_and_fine_otherwise():
    model = models.deeplabv3("resnet18", CLASSES)
    x = images(1, dtype=torch.float32)
    before = copy.deepcopy(model.classifier.state_dict())
    with pytest.raises(ValueError, match=r"cannot be trained on a batch of one.*drop_last=True"):
        model(x)
    for name, tensor in model.classifier.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert model.eval()(x)["out"].shape == (1, CLASSES, 41, 50)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"backbone": "resnet152"},
            "backbone must be one of resnet18, resnet34, resnet50, resnet1",
        ),
        ({"output_stride": 32}, "output_stride must be 8 or 16, got 32"),
        ({"num_classes": 0}, "num_classes must be a positive int, got 0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.deeplabv3(**{"backbone": "resnet18", **arguments})


def test_wrong_images():
    model = models.deeplabv3("resnet18", CLASSES).eval()
    with pytest.raises(ValueError, match=r"takes images \(N, 3, H, W\), got \(1, 1, 8, 8\)"):
        model(torch.zeros(1, 1, 8, 8))
    with pytest.raises(TypeError, match=r"floating-point images, got torch\.uint8; divide bytes"):
        model(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
