"""Networks with a plain float64 twin, and images on which the two cannot differ by a tie."""

import torch
import torch.nn.functional as F
from plain_twins import PLAIN
from torch import Tensor, nn

from colorseg.models import NETWORKS
from colorseg.nn import chain

CLEAR = 1e-5  # from a ReLU's kink and between pixels of a max-pool: far beyond float32's rounding


def padded(x: Tensor) -> Tensor:
    """An image enlarged to multiples of 4 by repeating its last row and column."""
    rows = torch.arange(-(-x.shape[2] // 4) * 4).clamp(max=x.shape[2] - 1)
    columns = torch.arange(-(-x.shape[3] // 4) * 4).clamp(max=x.shape[3] - 1)
    return x[:, :, rows][..., columns]


def twins(name, *arguments, training=True):
    """A network with batch norms that have seen data, and its plain twin in float64."""
    arguments = arguments or (3, 8, 5, 1)
    model = NETWORKS[name](*arguments).train(training)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            channels = module.num_features
            with torch.no_grad():  # gammas of both signs: a fold must not pool before it scales
                module.weight.copy_((torch.rand(channels) + 0.5) * torch.randn(channels).sign())
                module.bias.normal_(std=0.3)
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.2, 1)
                module.num_batches_tracked.fill_(3)
    plain = PLAIN[NETWORKS[name].__name__](*arguments).train(training)
    plain.load_state_dict(model.state_dict())
    return model, plain.double()


def run_plain(plain: nn.Module, x: Tensor) -> Tensor:
    """The twin's logits of an image of any size, in float64."""
    return plain(padded(x.double()))[..., : x.shape[2], : x.shape[3]]


def clear_images(plain: nn.Module, *shape: int) -> Tensor:
    """Float32 images for which no value of the twin is closer to a tie than CLEAR."""
    gaps: list[float] = []

    def norm(_module, _inputs, y):
        gaps.append(y.abs().min().item())

    def pool(_module, inputs):
        top = F.unfold(inputs[0].flatten(0, 1)[:, None], 2, stride=2).topk(2, 1).values
        gaps.append((top[:, 0] - top[:, 1]).min().item())

    hooks = []
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            hooks.append(module.register_forward_hook(norm))
        elif isinstance(module, nn.MaxPool2d):
            hooks.append(module.register_forward_pre_hook(pool))
    state = {name: t.clone() for name, t in plain.state_dict().items()}
    for _ in range(50):
        x = torch.rand(shape)
        gaps.clear()
        with torch.no_grad():
            run_plain(plain, x)
        if min(gaps) > CLEAR:
            break
    else:
        raise AssertionError(f"50 draws of {shape} came within {CLEAR} of a tie")
    for hook in hooks:
        hook.remove()
    plain.load_state_dict(state)
    return x


def count_chain_calls(monkeypatch):
    """A list that gets the number of layers of each call of the chain operator."""
    calls, operator = [], chain.run_layers

    def counted(x, layers):
        calls.append(len(layers))
        return operator(x, layers)

    monkeypatch.setattr(chain, "run_layers", counted)
    return calls
