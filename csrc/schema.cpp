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

  // distance. Shapes: input [R, D], other [C, D]; out, grad [R, C]; pair_distances has a batch dimension in front of all of them.
  m.def("distance_tile(Tensor input, Tensor other, str metric, float[] metric_params, Tensor(a!) out) -> ()");
  m.def(  // adds to d_input and d_other
      "distance_tile_backward(Tensor(a!) d_input, Tensor(b!) d_other, Tensor grad, Tensor input, Tensor other, str metric, "
      "float[] metric_params, bool wants_input, bool wants_other) -> ()");
  m.def("pair_distances(Tensor input, Tensor other, str metric, float[] metric_params) -> Tensor");
  m.def(
      "pair_distances_backward(Tensor grad, Tensor input, Tensor other, str metric, float[] metric_params, bool wants_input, "
      "bool wants_other) -> (Tensor d_input, Tensor d_other)");
}
