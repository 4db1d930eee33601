// every op of the library: the table of contents. Names here are the names in the fakes, the launchers and the references.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(nearlinear, m) {
  // cross_entropy. Shapes: input [N, V] or [N, V, P], target [N] or [N, P]; statistics have the shape of the rows.
  m.def(
      "logit_stats(Tensor input, Tensor target, Tensor? weight, int ignore_index, str logit_map, float[] map_params, bool spread) "
      "-> (Tensor nll, Tensor lse, Tensor spread, Tensor lse_residual)");
  m.def(
      "logit_stats_backward(Tensor d_nll, Tensor d_lse, Tensor d_spread, Tensor input, Tensor target, Tensor? weight, Tensor nll, "
      "Tensor lse, Tensor lse_residual, int ignore_index, str logit_map, float[] map_params, bool spread) -> Tensor d_input");
  m.def(
      "soft_logit_stats(Tensor input, Tensor target, Tensor? weight, float label_smoothing, str logit_map, float[] map_params) "
      "-> (Tensor xent, Tensor lse, Tensor lse_residual, Tensor mass)");
  m.def(
      "soft_logit_stats_backward(Tensor d_xent, Tensor d_lse, Tensor input, Tensor target, Tensor? weight, Tensor lse, "
      "Tensor lse_residual, Tensor mass, float label_smoothing, str logit_map, float[] map_params, bool target_gradient) "
      "-> (Tensor d_input, Tensor d_target)");
  m.def("first_invalid_target(Tensor target, int num_classes, int ignore_index) -> Tensor");

  // kl_logit. Shapes: input and target [N, V] or [N, V, P]; statistics have the shape of the rows.
  m.def(
      "two_logit_stats(Tensor input, Tensor target, float inv_temperature) "
      "-> (Tensor kl, Tensor lse_input, Tensor lse_target, Tensor residual_input, Tensor residual_target)");
  m.def(
      "two_logit_stats_backward(Tensor d_kl, Tensor input, Tensor target, Tensor kl, Tensor lse_input, Tensor lse_target, "
      "Tensor residual_input, Tensor residual_target, float inv_temperature, bool input_gradient, bool target_gradient) "
      "-> (Tensor d_input, Tensor d_target)");
}
