// Every operator of the library, in one table.  colorseg/ops/*.py wraps each in a public function.
//
// In all of them: skip is convolved as if torch.cat([x, skip], 1) had been; in_scale, in_shift,
// in_relu and in_upsample are a prologue, x <- upsample2(relu(x * in_scale + in_shift)); padding is
// (top, bottom, left, right).  Backward operators return an empty tensor for what is not needed.
#include "common.h"

STABLE_TORCH_LIBRARY(colorseg, m) {
  m.def(
      "conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? skip, Tensor? in_scale, Tensor? "
      "in_shift, "
      "bool in_relu, bool in_upsample, int[] stride, int[] padding, int[] dilation, int groups, "
      "bool transposed, "
      "int[] output_padding) -> Tensor");
  m.def(
      "conv2d_backward(Tensor grad_y, Tensor x, Tensor weight, Tensor? skip, Tensor? in_scale, "
      "Tensor? in_shift, "
      "bool in_relu, bool in_upsample, int[] stride, int[] padding, int[] dilation, int groups, "
      "bool transposed, "
      "int[] output_padding, bool needs_x, bool needs_skip, bool needs_weight, bool needs_bias) "
      "-> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias, Tensor grad_skip, Tensor "
      "grad_in_scale, "
      "Tensor grad_in_shift)");
  // resample: "none" | "maxpool2" | "upsample2"; training: normalise by batch statistics; residual:
  // added in front of the ReLU.  Besides y it returns what backward needs: BN's input, the
  // max-pool's argmax (2 bits each), and the mean and biased variance used.
  m.def(
      "conv_bn_relu(Tensor x, Tensor weight, Tensor? bias, Tensor? skip, Tensor? residual, "
      "Tensor? bn_weight, Tensor? bn_bias, "
      "Tensor? running_mean, Tensor? running_var, Tensor? in_scale, Tensor? in_shift, bool "
      "in_relu, "
      "bool in_upsample, int[] stride, int[] padding, int[] dilation, int groups, bool transposed, "
      "int[] output_padding, str resample, bool training, float eps, bool relu) "
      "-> (Tensor y, Tensor pre_bn, Tensor argmax, Tensor mean, Tensor var)");
  // y: only where a residual was added in front of a ReLU, whose mask it tells; grad_residual is
  // empty without it
  m.def(
      "conv_bn_relu_backward(Tensor grad_y, Tensor x, Tensor weight, Tensor? skip, Tensor? y, "
      "Tensor? bn_weight, Tensor? bn_bias, Tensor pre_bn, Tensor argmax, Tensor mean, Tensor var, "
      "Tensor? in_scale, "
      "Tensor? in_shift, "
      "bool in_relu, bool in_upsample, int[] stride, int[] padding, int[] dilation, int groups, "
      "bool transposed, "
      "int[] output_padding, str resample, bool training, float eps, bool relu, bool needs_x, "
      "bool needs_skip, bool needs_weight, bool needs_bias) "
      "-> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias, Tensor grad_skip, Tensor "
      "grad_residual, Tensor grad_bn_weight, "
      "Tensor grad_bn_bias, Tensor grad_in_scale, Tensor grad_in_shift)");
  m.def(
      "conv_bn_relu_inference(Tensor x, Tensor weight, Tensor? bias, Tensor? skip, Tensor? "
      "residual, Tensor? bn_weight, "
      "Tensor? bn_bias, Tensor? running_mean, Tensor? running_var, Tensor? in_scale, Tensor? "
      "in_shift, bool in_relu, "
      "bool in_upsample, int[] stride, int[] padding, int[] dilation, int groups, bool transposed, "
      "int[] output_padding, str resample, float eps, bool relu) -> Tensor");
  // Blocks one behind the other, the last one a plain convolution; see chain.h for the description
  // of the layers.  Returns y, and per batch norm its input, argmax, mean, variance and affine;
  // backward the gradient of x, and per layer those of weight, bias, bn_weight and bn_bias.
  m.def("chain(Tensor x, Tensor[] parameters, int[] layers, float[] eps) -> Tensor[]");
  // For inference on CUDA: what does not depend on x, and y with the help of that.
  m.def("prepare_chain(Tensor x, Tensor[] parameters, int[] layers, float[] eps) -> Tensor[]");
  m.def(
      "prepared_chain(Tensor x, Tensor[] parameters, Tensor[] prepared, int[] layers, float[] eps) "
      "-> Tensor");
  // whether there are kernels for all of its layers on this device
  m.def("chain_fits(Tensor x, Tensor[] parameters, int[] layers, float[] eps) -> bool");
  m.def(
      "chain_backward(Tensor grad_y, Tensor x, Tensor[] parameters, Tensor[] saved, int[] layers, "
      "float[] eps, bool needs_x) -> Tensor[]");
  // Of each batch norm, running: mean, variance and how many batches were counted (int64, empty:
  // they are not); batch: mean and biased variance in double, of `counts` values; a negative
  // momentum is the cumulative average.
  m.def(
      "update_running_statistics(Tensor(a!)[] running, Tensor[] batch, int[] counts, float[] "
      "momenta) -> ()");
  // The same as chain for inference, with batch norm folded and weights packed once; its layers are
  // described by the numbers of chain and the sizes of the weight (int64, in a tensor: lists cost
  // time).
  m.def("pack_chain(Tensor[] parameters, int[] layers, float[] eps, bool bfloat16) -> Tensor");
  m.def("packed_chain(Tensor x, Tensor packed, Tensor layers) -> Tensor");
  // For inference of one convolution in channels_last: how the kernel that is the fastest for such
  // an x reads the weight, 0 if that is ATen's; the weight packed so; and the convolution.
  m.def(
      "conv2d_packing(Tensor x, Tensor weight, int[] stride, int[] padding, int[] dilation, int "
      "groups, bool exact) -> int");
  m.def("pack_conv2d(Tensor weight, int packing) -> Tensor");
  m.def(
      "packed_conv2d(Tensor x, Tensor packed, Tensor? bias, Tensor? residual, int[] padding, int[] "
      "dilation, bool relu) -> Tensor");
  m.def(  // the same onto the residual
      "packed_conv2d_(Tensor x, Tensor packed, Tensor? bias, Tensor(a!) y, int[] padding, int[] "
      "dilation, bool relu) -> ()");
  // sums: (images, classes, 2), the intersection and the union, in double; images is 1 unless
  // per_image; kept: if keep what backward takes as its target, else empty: the labels in uint8,
  // 255 where ignored; of two classes x0 x1, negative where the label is 0, 0 where it is ignored:
  // on the CPU the first channel of a map that soft_iou_loss_backward_ turns into the gradient
  m.def(
      "soft_iou_loss(Tensor logits, Tensor target, int[] classes, bool per_image, float "
      "smooth_numerator, "
      "float smooth_denominator, int? ignore_index, Tensor? weight, str reduction, bool "
      "keep) -> (Tensor loss, Tensor sums, Tensor kept)");
  m.def(
      "soft_iou_loss_backward(Tensor grad_loss, Tensor logits, Tensor target, Tensor sums, int[] "
      "classes, "
      "bool per_image, float smooth_numerator, float smooth_denominator, int? ignore_index, "
      "Tensor? weight, "
      "str reduction) -> Tensor");
  m.def(
      "soft_iou_loss_backward_(Tensor(a!) gradient, Tensor grad_loss, Tensor sums, int[] classes, "
      "bool per_image, float smooth_numerator, float smooth_denominator, Tensor? weight, str "
      "reduction) -> ()");
  // target: labels (N, H, W), or RGB (N, 3, H, W) with a palette; normalizer: what a mean divides
  // by; gradient: of a loss that is a scalar with respect to the logits, empty unless
  // with_gradient; color_cross_entropy_scale_ multiplies it with dL/d(loss)
  m.def(
      "color_cross_entropy(Tensor logits, Tensor target, Tensor? palette, Tensor? weight, int "
      "ignore_index, "
      "float label_smoothing, int soft_neighbors, float soft_sigma, str reduction, bool "
      "return_stats, bool with_gradient) -> (Tensor "
      "loss, "
      "Tensor log_sum_exp, "
      "Tensor normalizer, Tensor argmax, Tensor correct, Tensor valid, Tensor gradient)");
  m.def(
      "color_cross_entropy_backward(Tensor grad_loss, Tensor logits, Tensor target, Tensor? "
      "palette, Tensor? weight, "
      "Tensor log_sum_exp, Tensor normalizer, int ignore_index, float label_smoothing, int "
      "soft_neighbors, float soft_sigma, str reduction) -> Tensor");
  m.def("color_cross_entropy_scale_(Tensor(a!) gradient, Tensor grad_loss) -> ()");
  m.def("nearest_color(Tensor rgb, Tensor palette) -> Tensor");  // (N, 3, H, W) -> (N, H, W) int64
}
