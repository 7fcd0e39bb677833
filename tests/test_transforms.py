"""Fused models under torch.func, torch.fx and torch.ao, which take modules apart: as plain ones."""

import copy

import pytest
import torch
from conftest import assert_close
from plain_twins import PlainUNet, count_fused_calls, plain_block
from torch import nn
from torch.ao import quantization
from torch.ao.quantization import quantize_fx

import colorseg
from colorseg import ops, reference
from colorseg.models import UNet, deeplabv3
from colorseg.nn import ColorCrossEntropyLoss, SoftIoULoss

DEPRECATED = pytest.mark.filterwarnings(
    "ignore:.*torch.ao.quantization", "ignore:.*reduce_range", "ignore:torch.quantize_per_tensor"
)


def networks():
    """(fused, plain, images): a network, a Sequential, and residual blocks; in float64."""
    torch.manual_seed(0)
    unet, plain = UNet(num_filters=3, num_colors=2), PlainUNet(nf=3, nc=2)
    plain.load_state_dict(unet.state_dict())
    yield unet, plain, torch.rand(2, 1, 8, 4)
    sequential = nn.Sequential(*plain_block(2, 3, 3, resample="maxpool2"), nn.Conv2d(3, 2, 1))
    yield colorseg.fuse(copy.deepcopy(sequential)), sequential, torch.rand(2, 2, 6, 4)
    backbone = deeplabv3("resnet18", 2).backbone
    stage = nn.Sequential(backbone["layer1"], nn.Conv2d(64, 2, 1))
    yield stage, colorseg.unfuse(copy.deepcopy(stage)), torch.rand(2, 64, 3, 2)


TRIPLES = pytest.mark.parametrize(
    "triple", [*networks()], ids=["UNet", "Sequential", "residual blocks"]
)


def doubled(triple):
    fused, plain, x = copy.deepcopy(triple)
    return fused.double(), plain.double(), x.double()


def gradients(model, x):
    """Of all parameters in training, and the running statistics after it."""

    def loss(parameters):
        buffers = {name: b.clone() for name, b in model.named_buffers()}
        y = torch.func.functional_call(model, (parameters, buffers), (x,))
        return y.square().sum(), buffers

    gradients, buffers = torch.func.grad(loss, has_aux=True)(dict(model.named_parameters()))
    return gradients | buffers


def per_picture(model, x):
    def loss(parameters, image):
        return torch.func.functional_call(model, parameters, (image[None],)).square().sum()

    return torch.func.vmap(torch.func.grad(loss), (None, 0))(dict(model.named_parameters()), x)


@TRIPLES
def test_gradients_of_functions(triple):
    fused, plain, x = doubled(triple)
    got, want = gradients(fused, x), gradients(plain, x)
    for name, value in want.items():
        assert_close(got[name].double(), value.double())
    fused.eval(), plain.eval()
    got, want = per_picture(fused, x), per_picture(plain, x)
    for name, value in want.items():
        assert_close(got[name], value)


@TRIPLES
def test_jacobians_in_both_modes(triple):
    fused, plain, x = doubled(triple)
    fused.eval(), plain.eval()
    want = torch.func.jacrev(plain)(x[:1])
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        assert_close(transform(fused)(x[:1]), want)
    product, direction = torch.func.jvp(torch.func.grad(lambda x: fused(x).exp().sum()), (x,), (x,))
    wanted = torch.func.jvp(torch.func.grad(lambda x: plain(x).exp().sum()), (x,), (x,))
    assert_close(product, wanted[0])
    assert_close(direction, wanted[1])  # a second derivative


LOSSES = {
    "soft_iou_loss": (SoftIoULoss(classes="all"), ops.soft_iou_loss),
    "color_cross_entropy": (ColorCrossEntropyLoss(), ops.color_cross_entropy),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name):
    """Modules are plain inside; operators say so."""
    loss, operator = LOSSES[name]
    z, target = torch.randn(2, 3, 4, 5).double(), torch.randint(0, 3, (2, 4, 5))
    want = torch.autograd.functional.jacobian(lambda z: loss(z, target), z)
    assert_close(torch.func.grad(lambda z: loss(z, target))(z), want)
    with pytest.raises(RuntimeError, match=f"use colorseg.reference.{name} there, or a module"):
        torch.func.grad(lambda z: operator(z, target))(z)


@pytest.mark.parametrize("channels", [2, 3])
@pytest.mark.parametrize("name", LOSSES)
def test_batches_of_gradients_of_losses(name, channels):
    operator = LOSSES[name][1]
    z, target = torch.randn(2, channels, 4, 5).double(), torch.randint(0, channels, (2, 4, 5))
    upstream = torch.rand(3).double()
    z.requires_grad_()
    got, want = (
        torch.autograd.grad(function(z, target), z, upstream, is_grads_batched=True)[0]
        for function in (operator, getattr(reference, name))
    )
    assert_close(got, want)


def test_outside_of_a_transform_blocks_are_fused_again(monkeypatch):
    calls = count_fused_calls(monkeypatch)
    _, (fused, _, x), _ = networks()
    fused.eval()
    torch.func.jacrev(fused)(x)
    assert calls == []
    fused(x)
    assert len(calls) == 1


def test_a_compiled_gradient():
    torch.compiler.reset()
    fused, _, x = doubled([*networks()][1])
    fused.eval()
    function = torch.func.grad(lambda x: fused(x).square().sum())
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x), function(x))


class Wrapped(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) + 1


@pytest.mark.parametrize("wrap", [lambda model: model, Wrapped], ids=["alone", "inside"])
def test_symbolic_traces_are_those_of_plain_modules(wrap):
    for fused, plain, x in [*networks()][1:]:
        fused, plain = wrap(fused.eval()), wrap(plain.eval())
        traced, expected = torch.fx.symbolic_trace(fused), torch.fx.symbolic_trace(plain)
        assert torch.equal(traced(x), expected(x))
        assert not any("colorseg" in str(node.target) for node in traced.graph.nodes)


def test_networks_of_any_size_cannot_be_traced_symbolically():
    message = r"UNet takes a tensor, got Proxy; torch\.fx cannot .* torch\.export\.export can"
    with pytest.raises(TypeError, match=message):
        torch.fx.symbolic_trace(UNet(num_filters=2))


def by_eager_mode(model, x):
    model = quantization.QuantWrapper(model)
    model.qconfig = quantization.get_default_qconfig("x86")
    quantization.prepare(model, inplace=True)
    model(x)
    return quantization.convert(model)


def by_graph(model, x):
    model = quantize_fx.prepare_fx(model, quantization.get_default_qconfig_mapping("x86"), (x,))
    model(x)
    return quantize_fx.convert_fx(model)


@DEPRECATED
@pytest.mark.parametrize("quantized", [by_eager_mode, by_graph])
def test_quantized_like_plain_modules(quantized):
    fused, plain, x = [*networks()][1]
    got, want = (quantized(model.eval(), x) for model in (fused, plain))
    kinds = {type(module).__module__ for module in got.modules()}
    assert any("quantized" in kind for kind in kinds)
    assert torch.equal(got(x), want(x))


@DEPRECATED
def test_trained_for_quantization_like_plain_modules():
    results = []
    fused, plain, x = [*networks()][1]
    for model in (fused, plain):
        model = quantization.QuantWrapper(model)
        model.qconfig = quantization.get_default_qat_qconfig("x86")
        quantization.prepare_qat(model.train(), inplace=True)
        y = model(x)
        y.square().sum().backward()
        results.append([y, *(p.grad for p in model.parameters())])
    for got, want in zip(*results, strict=True):
        assert torch.equal(got, want)
