"""optimize_for_inference of DeepLabV3 and of fused residual networks: batch norm folded."""

import copy
import io

import pytest
import torch
from conftest import assert_close
from test_fuse_forms import Basic, Deep
from torch import nn

import colorseg
from colorseg import models, optimize_for_inference
from colorseg.nn.folded import MAX_SHAPES, FoldedConv2d
from colorseg.nn.stage import Stage


def randomized(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def exact(model, x):
    plain = colorseg.unfuse(copy.deepcopy(model)).double().eval()
    with torch.no_grad():
        return plain(x.double())


@pytest.fixture(scope="module", params=["resnet18", "resnet50"])
def deeplab(request):
    torch.manual_seed(1)
    return randomized(models.deeplabv3(request.param, 3, aux=True))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_deeplab_matches_float64(deeplab, layout):
    x = torch.randn(2, 3, 33, 40).contiguous(memory_format=layout)
    optimized = optimize_for_inference(deeplab)
    for size in (x, x[:1, :, :20, :24]):
        got, want = optimized(size), exact(deeplab, size)
        assert got.keys() == want.keys()
        for name, value in want.items():
            assert_close(got[name], value)
    assert got["out"].dtype == torch.float32
    assert optimized(x)["out"].is_contiguous(memory_format=layout)
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in deeplab.modules())
    # all but the one behind the pooled image, which is one pixel
    assert sum(isinstance(m, FoldedConv2d) for m in optimized.modules()) == norms - 1


def test_bfloat16(deeplab, bfloat16_kernels):
    x = torch.randn(2, 3, 33, 40)
    optimized = optimize_for_inference(deeplab, torch.bfloat16)
    y, want = optimized(x.bfloat16())["out"], exact(deeplab, x)["out"]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        theirs = colorseg.unfuse(copy.deepcopy(deeplab)).eval()(x)["out"]
    assert y.dtype == torch.bfloat16
    assert (y - want).norm() < 1.5 * (theirs - want).norm()


@pytest.mark.parametrize("make", [Basic, lambda: Basic(4, 6, 2), Deep, lambda: Deep(4, 6, 2)])
def test_fused_blocks(make):
    model = randomized(nn.Sequential(nn.Tanh(), colorseg.fuse(make())))
    x = torch.randn(2, 4, 9, 8)
    before = x.clone()
    assert_close(optimize_for_inference(model)(x), exact(model, x))
    assert torch.equal(x, before)  # the shortcut is not added in place


def test_a_watched_child_stays():
    model = randomized(colorseg.fuse(Basic()))
    seen = []
    model.bn1.register_forward_hook(lambda module, args, y: seen.append(y))
    optimized, x = optimize_for_inference(model), torch.randn(2, 4, 9, 8)
    assert_close(optimized(x), exact(model, x))
    assert type(optimized.conv1) is nn.Conv2d
    assert isinstance(optimized.conv2, FoldedConv2d)
    assert seen


def test_without_onednn(monkeypatch):
    monkeypatch.setattr("colorseg.nn.folded._has_pointwise", lambda x: False)
    model, x = randomized(colorseg.fuse(Deep(4, 6, 2))), torch.randn(2, 4, 9, 8)
    assert_close(optimize_for_inference(model)(x), exact(model, x))


def test_it_is_independent_and_copies(deeplab):
    model, x = copy.deepcopy(deeplab), torch.randn(1, 3, 24, 24)
    optimized = optimize_for_inference(model)
    before = optimized(x)["out"]
    file = io.BytesIO()
    torch.save(optimized, file)
    file.seek(0)
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data.zero_()
    assert model.training
    for other in (optimized, copy.deepcopy(optimized), torch.load(file, weights_only=False)):
        assert torch.equal(other(x)["out"], before)


def test_what_was_packed_is_packed_again_in_another_dtype(bfloat16_kernels):
    block = randomized(Basic(64, 64)).eval()
    optimized, x = optimize_for_inference(colorseg.fuse(block)), torch.randn(2, 64, 16, 16)
    want = exact(block, x)
    assert_close(optimized(x), want)
    optimized.bfloat16()
    assert_close(optimized(x.bfloat16()), want)
    for width in range(1, 2 * MAX_SHAPES):
        optimized(torch.randn(1, 64, 4, width).bfloat16())
    assert len(optimized.conv1._packings) <= MAX_SHAPES


def test_it_neither_trains_nor_differentiates(deeplab):
    optimized = optimize_for_inference(deeplab)
    with pytest.raises(RuntimeError, match="cannot be trained"):
        optimized.train()
    with pytest.raises(RuntimeError, match="has no gradients"):
        optimized(torch.randn(1, 3, 24, 24, requires_grad=True))


def test_double_is_refused(deeplab):
    with pytest.raises(ValueError, match="nothing in this DeepLabV3 can be optimised"):
        optimize_for_inference(copy.deepcopy(deeplab).double())


def plain_stages(model):
    """``model``, whose blocks write no result over another one."""
    for module in model.modules():
        if type(module) is Stage:
            module.__class__ = nn.Sequential
    return model


def test_results_may_take_the_place_of_what_is_not_read_again(deeplab, monkeypatch):
    optimized, kept = optimize_for_inference(deeplab), plain_stages(optimize_for_inference(deeplab))
    x = torch.randn(2, 3, 64, 72)
    places = []

    def forward(conv, x, residual=None, relu=None, overwrites=False):
        y = original(conv, x, residual, relu, overwrites)
        if residual is not None:
            places.append(y.data_ptr() == residual.data_ptr())
        return y

    original = FoldedConv2d.forward
    monkeypatch.setattr(FoldedConv2d, "forward", forward)
    got = optimized(x)
    assert any(places)
    places.clear()
    want = kept(x)
    assert not any(places)
    for name in want:
        assert_close(got[name], want[name].double())


@pytest.mark.parametrize("watched", ["layer2.0", "layer2.1", "layer2.1.conv2", "layer2.1.relu"])
def test_what_a_hook_has_seen_stays(deeplab, watched):
    optimized, seen = optimize_for_inference(deeplab), []

    def keep(module, inputs, y):
        seen.extend((t, t.clone()) for t in (*inputs, y) if isinstance(t, torch.Tensor))

    optimized.backbone.get_submodule(watched).register_forward_hook(keep)
    x = torch.randn(2, 3, 64, 72)
    want = plain_stages(optimize_for_inference(deeplab))(x)
    assert_close(optimized(x)["out"], want["out"].double())
    assert seen
    for tensor, copied in seen:
        assert torch.equal(tensor, copied)


def test_a_stage_leaves_its_input_alone(deeplab):
    stage = optimize_for_inference(deeplab).backbone.layer1
    x = torch.randn(1, 64, 16, 24).contiguous(memory_format=torch.channels_last)
    before = x.clone()
    with torch.no_grad():
        y = stage(x)
        again = stage(x)
    assert isinstance(stage, Stage)
    assert torch.equal(x, before)
    assert torch.equal(y, again)
    assert y.data_ptr() != again.data_ptr()


class Keeper(nn.ReLU):
    """A user's module that remembers its result."""

    def forward(self, x):
        self.last = super().forward(x)
        self.copied = self.last.clone()
        return self.last


@pytest.mark.parametrize("place", ["layer2.0.relu", "layer2.0.downsample.2"])
def test_what_a_module_has_kept_stays(deeplab, place):
    model = copy.deepcopy(deeplab)
    parent, name = place.rsplit(".", 1)
    model.backbone.get_submodule(parent).add_module(name, Keeper())
    optimized = optimize_for_inference(model)
    optimized(torch.randn(2, 3, 64, 72))
    keeper = optimized.backbone.get_submodule(place)
    assert torch.equal(keeper.last, keeper.copied)


def test_maps_of_one_pixel(deeplab):
    x = torch.randn(2, 3, 8, 8)
    assert_close(optimize_for_inference(deeplab)(x)["out"], exact(deeplab, x)["out"])
