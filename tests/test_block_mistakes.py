"""Wrong arguments and inputs of the blocks get a sentence."""

import pytest
import torch

from colorseg.nn import ConvBNReLU, SkipConv2d, conv_bn_relu

SIZES = (5, 4, 3)
AT_LEAST = "must be an int of at least"
WRONG = {
    "kernel 0": ({"kernel_size": 0}, f"kernel_size {AT_LEAST} 1, got 0"),
    "kernel pair": ({"kernel_size": (3, 3)}, rf"kernel_size {AT_LEAST} 1, got \(3, 3\)"),
    "stride": ({"stride": "2"}, f"stride {AT_LEAST} 1, got '2'"),
    "dilation": ({"dilation": 0}, f"dilation {AT_LEAST} 1, got 0"),
    "padding": ({"padding": -1}, f"padding {AT_LEAST} 0, got -1"),
    "padding name": ({"padding": "same"}, f"padding {AT_LEAST} 0, got 'same'"),
    "output_padding": ({"output_padding": 1}, "output_padding belongs to transposed"),
    "even kernel": ({"kernel_size": 4, "transposed": True}, "output_padding -1; use an odd kernel"),
    "too little": ({"stride": 2, "transposed": True, "padding": 0}, "use .* a larger padding"),
    "resample": (
        {"resample": "avg"},
        "resample must be None, 'maxpool2' or 'upsample2', got 'avg'",
    ),
    "groups": ({"groups": 3}, "in_channels must be divisible by groups"),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        ConvBNReLU(*SIZES[:2], **{"kernel_size": 3} | options)


BAD_INPUTS = {
    "channels": ([(2, 4, 8, 8)], "expects 5 input channels, got 4 in x"),
    "skip channels": ([(2, 4, 8, 8), (2, 2, 8, 8)], "expects 5 .* got 4 in x and 2 in skip"),
    "skip size": ([(2, 4, 8, 8), (2, 1, 8, 7)], r"skip must be \(2, any, 8, 8\)"),
    "dimensions": ([(5, 8, 8)], "x must be .N, C, H, W., got 3 dimensions"),
}


@pytest.mark.parametrize(("sizes", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_wrong_inputs_leave_no_trace(sizes, message):
    block = ConvBNReLU(*SIZES)
    for module in (block, SkipConv2d(*SIZES, padding=1)):
        with pytest.raises(RuntimeError, match=message):
            module(*map(torch.zeros, sizes))
    assert block[1].num_batches_tracked == 0


@pytest.mark.parametrize("hooked", [True, False])
def test_conv_bn_relu_refuses_an_unknown_resampling(hooked):
    conv, bn, _ = ConvBNReLU(*SIZES)
    if hooked:
        conv.register_forward_hook(lambda module, args, y: y)
    with pytest.raises(ValueError, match="resample must be None, 'maxpool2' or 'upsample2', got"):
        conv_bn_relu(conv, bn, torch.zeros(2, 5, 8, 8), resample="avg")
