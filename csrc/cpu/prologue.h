// x <- upsample2(relu(x * scale + shift)): what a block may hand over unfinished to the next
// convolution.
#pragma once
#include "../conv2d.h"

namespace colorseg::cpu {

Tensor apply_prologue(const Tensor& x, const Prologue& prologue, bool channels_last);

// (grad_x, grad_scale, grad_shift); the last two are empty without scale
std::tuple<Tensor, Tensor, Tensor> prologue_backward(const Tensor& grad, const Tensor& x,
                                                     const Prologue& prologue, bool channels_last);

}  // namespace colorseg::cpu
