// every op of the library: the table of contents. Names here are the names in the fakes, the launchers and the references.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(nearlinear, m) {
  // cross_entropy. Shapes: input [N, V] or [N, V, P], target [N] or [N, P]; statistics have the shape of the rows.
  // input may be a shard: classes first_class to first_class + V of num_classes, labels counted from class 0.
  m.def(
      "logit_stats(Tensor input, Tensor target, Tensor? weight, int ignore_index, str logit_map, float[] map_params, bool spread, "
      "int first_class=0, int? num_classes=None) -> (Tensor nll, Tensor lse, Tensor spread, Tensor lse_residual)");
  m.def(
      "logit_stats_backward(Tensor d_nll, Tensor d_lse, Tensor d_spread, Tensor input, Tensor target, Tensor? weight, Tensor nll, "
      "Tensor lse, Tensor lse_residual, int ignore_index, str logit_map, float[] map_params, bool spread, int first_class=0, "
      "int? num_classes=None) -> Tensor d_input");
  m.def(
      "logit_stats_backward_(Tensor d_nll, Tensor d_lse, Tensor d_spread, Tensor(a!) input, Tensor target, Tensor? weight, Tensor nll, "
      "Tensor lse, Tensor lse_residual, int ignore_index, str logit_map, float[] map_params, bool spread, int first_class=0, "
      "int? num_classes=None) -> ()");
  m.def(
      "soft_logit_stats(Tensor input, Tensor target, Tensor? weight, float label_smoothing, str logit_map, float[] map_params) "
      "-> (Tensor xent, Tensor lse, Tensor lse_residual, Tensor mass)");
  m.def(
      "soft_logit_stats_backward(Tensor d_xent, Tensor d_lse, Tensor input, Tensor target, Tensor? weight, Tensor lse, "
      "Tensor lse_residual, Tensor mass, float label_smoothing, str logit_map, float[] map_params, bool target_gradient) "
      "-> (Tensor d_input, Tensor d_target)");
}

STABLE_TORCH_LIBRARY_FRAGMENT(nearlinear, m) {
  // linear_cross_entropy. Shapes: input [N, D], linear_weight [V, D], linear_bias [V], target [N], margin [N]; statistics [N]. The
  // scores of input against linear_weight exist one tile at a time. wants: gradients of input, linear_weight, linear_bias, margin.
  m.def(
      "linear_logit_stats(Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor target, Tensor? weight, Tensor? margin, "
      "int ignore_index, str logit_map, float[] map_params, bool spread, int first_class=0, int? num_classes=None, "
      "int? max_workspace_bytes=None) -> (Tensor nll, Tensor lse, Tensor spread, Tensor lse_residual)");
  m.def(
      "linear_logit_stats_backward(Tensor d_nll, Tensor d_lse, Tensor d_spread, Tensor input, Tensor linear_weight, Tensor? linear_bias, "
      "Tensor target, Tensor? weight, Tensor? margin, Tensor nll, Tensor lse, Tensor lse_residual, int ignore_index, str logit_map, "
      "float[] map_params, bool spread, int first_class, int? num_classes, int? max_workspace_bytes, bool[] wants) "
      "-> (Tensor d_input, Tensor d_weight, Tensor d_bias, Tensor d_margin)");
  // target [N, V]: class probabilities; wants has its gradient in the place of margin's
  m.def(
      "linear_soft_logit_stats(Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor target, Tensor? weight, "
      "float label_smoothing, str logit_map, float[] map_params, int? max_workspace_bytes=None) "
      "-> (Tensor xent, Tensor lse, Tensor lse_residual, Tensor mass)");
  m.def(
      "linear_soft_logit_stats_backward(Tensor d_xent, Tensor d_lse, Tensor? d_mass, Tensor input, Tensor linear_weight, "
      "Tensor? linear_bias, Tensor target, Tensor? weight, Tensor lse, Tensor lse_residual, Tensor mass, float label_smoothing, "
      "str logit_map, float[] map_params, int? max_workspace_bytes, bool[] wants) "
      "-> (Tensor d_input, Tensor d_weight, Tensor d_bias, Tensor d_target)");
  // loss = sum_i row_scale_i rows_i with the gradients for an upstream of 1, computed in the same walk. Backward scales them by the
  // upstream: in place, unless the graph is retained.
  m.def(
      "linear_row_loss(Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor target, Tensor? weight, Tensor? margin, "
      "Tensor row_scale, Tensor? extra_lse, int ignore_index, str logit_map, float[] map_params, str row_loss, float[] row_params, "
      "float label_smoothing, float z_loss, int? max_workspace_bytes, bool[] wants) -> (Tensor loss, Tensor rows, Tensor d_extra_lse, "
      "Tensor d_input, Tensor d_weight, Tensor d_bias, Tensor d_margin)");
  // sface. Shapes: input [N, V] cosines, or classes first_class to first_class + V of more; target [N]; total [N]. The gradient takes the
  // weights of the sum for constants.
  m.def("logit_sum(Tensor input, Tensor target, int ignore_index, str logit_map, float[] map_params, int first_class=0) -> Tensor total");
  m.def(
      "logit_sum_backward(Tensor d_total, Tensor input, Tensor target, int ignore_index, str logit_map, float[] map_params, "
      "int first_class=0) -> Tensor d_input");
  m.def(
      "logit_sum_backward_(Tensor d_total, Tensor(a!) input, Tensor target, int ignore_index, str logit_map, float[] map_params, "
      "int first_class=0) -> ()");
  m.def(
      "linear_logit_sum(Tensor input, Tensor linear_weight, Tensor target, int ignore_index, str logit_map, float[] map_params, "
      "int? max_workspace_bytes=None) -> Tensor total");
  m.def(
      "linear_logit_sum_backward(Tensor d_total, Tensor input, Tensor linear_weight, Tensor target, int ignore_index, str logit_map, "
      "float[] map_params, int? max_workspace_bytes, bool[] wants) -> (Tensor d_input, Tensor d_weight)");
}

STABLE_TORCH_LIBRARY_FRAGMENT(nearlinear, m) {
  // pair_loss. Scores of rows against columns (the same rows, or keys) exist one tile at a time. Statistics have a row for the positive
  // and one for the negative pairs: [2, N]. A column may have two labels, the first with the share mixing. A positive pair counts while
  // s < limit[0], a negative one while -s < limit[1]. self_column: the column of the tile that is its row 0 itself. Terms: [3, 2, N],
  // and [4, 2, N] with limits.
  m.def(
      "pair_tile_stats(Tensor tile, Tensor row_label, Tensor column_label, Tensor? other_label, Tensor? mixing, Tensor? limit, "
      "int? self_column, str logit_map, float[] map_params, float[] scale) -> (Tensor lse, Tensor sum, Tensor mass)");
  m.def(
      "pair_tile_stats_backward_(Tensor(a!) tile, Tensor row_label, Tensor column_label, Tensor? other_label, Tensor? mixing, "
      "Tensor row_terms, Tensor? column_terms, int? self_column, str logit_map, float[] map_params, float[] scale) -> ()");
  m.def(
      "pair_tile_extremes(Tensor tile, Tensor row_label, Tensor column_label, int? self_column, str logit_map, float[] map_params) "
      "-> (Tensor value, Tensor index)");
  m.def(
      "pair_stats(Tensor input, Tensor? key, Tensor target, Tensor? key_target, Tensor? other_target, Tensor? mixing, Tensor? limit, "
      "str logit_map, float[] map_params, float[] scale, int? max_workspace_bytes=None) -> (Tensor lse, Tensor sum, Tensor mass)");
  m.def(
      "pair_stats_backward(Tensor d_lse, Tensor d_sum, Tensor input, Tensor? key, Tensor target, Tensor? key_target, "
      "Tensor? other_target, Tensor? mixing, Tensor? limit, Tensor lse, str logit_map, float[] map_params, float[] scale, "
      "int? max_workspace_bytes, bool[] wants) -> (Tensor d_input, Tensor d_key)");
  m.def(
      "pair_extremes(Tensor input, Tensor? key, Tensor target, Tensor? key_target, str logit_map, float[] map_params, "
      "int? max_workspace_bytes=None) -> (Tensor value, Tensor index)");
  m.def("first_invalid_target(Tensor target, int num_classes, int ignore_index) -> Tensor");

  // kl_logit. Shapes: input and target [N, V] or [N, V, P]; statistics have the shape of the rows. beta = 0: the divergence is
  // KL(target || input), and kl_input is empty; 0 < beta < 1: that of Jensen and Shannon, with the share beta of target in the mixture.
  m.def(
      "two_logit_stats(Tensor input, Tensor target, float inv_temperature, float beta=0) -> (Tensor divergence, Tensor kl_input, "
      "Tensor lse_input, Tensor lse_target, Tensor residual_input, Tensor residual_target)");
  m.def(
      "two_logit_stats_backward(Tensor d_divergence, Tensor input, Tensor target, Tensor divergence, Tensor kl_input, Tensor lse_input, "
      "Tensor lse_target, Tensor residual_input, Tensor residual_target, float inv_temperature, float beta, bool input_gradient, "
      "bool target_gradient) -> (Tensor d_input, Tensor d_target)");
  // scores of two heads, input [N, D] on linear_weight [V, D] and target_input [N, K] on target_weight [V, K], a tile of rows at a time;
  // wants: gradients of the four tensors
  m.def(
      "linear_two_logit_stats(Tensor input, Tensor linear_weight, Tensor target_input, Tensor target_weight, float inv_temperature, "
      "float beta=0, int? max_workspace_bytes=None) -> Tensor divergence");
  m.def(
      "linear_two_logit_stats_backward(Tensor d_divergence, Tensor input, Tensor linear_weight, Tensor target_input, "
      "Tensor target_weight, float inv_temperature, float beta, int? max_workspace_bytes, bool[] wants) "
      "-> (Tensor d_input, Tensor d_weight, Tensor d_target_input, Tensor d_target_weight)");
}

STABLE_TORCH_LIBRARY_FRAGMENT(nearlinear, m) {
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

STABLE_TORCH_LIBRARY_FRAGMENT(nearlinear, m) {
  // roc_auc. Shapes: input [N], target bool [N], group int64 [N] of 0 to num_groups - 1 (None: one group); results [num_groups, 3].
  m.def("roc_auc_counts(Tensor input, Tensor target, Tensor? group, int num_groups) -> Tensor");  // int64: 2 U, positives, negatives
  m.def(  // float64: U up to a share max_fpr of the negatives, weight of the positives, weight of the negatives
      "roc_auc_sums(Tensor input, Tensor target, Tensor? sample_weight, Tensor? group, int num_groups, float max_fpr) -> Tensor");
  // input [N, C], target int64 [N]: U of class c against class j by the scores of column c, [C, C], and the weight of each class
  m.def("roc_auc_class_sums(Tensor input, Tensor target, Tensor? sample_weight) -> (Tensor sums, Tensor mass)");
}

STABLE_TORCH_LIBRARY_FRAGMENT(nearlinear, m) {
  // pairwise_auc. Shapes: input, coefficient [N] of one dtype, target bool [N], group int64 [N] of 0 to num_groups - 1 (None: one group).
  // Pairs of a positive i and a negative j of one group, x = s_i - s_j, c coefficients (None: 1); kernels as in python/nearlinear/
  // pair_kernels.py. total [num_groups] float64: sum of c_i c_j value(x); potential [N]: sum over the partners of c k(x). Empty list: none.
  m.def(
      "pair_scan(Tensor input, Tensor target, Tensor? coefficient, Tensor? group, int num_groups, str family, float[] value, "
      "float[] potential, str method) -> (Tensor total, Tensor potential)");
  // moments [num_groups, 2, bins, terms] float64, negatives first: sums of c T_k(t), b = floor(s inv_width) - first_bin, t in [-1, 1) the
  // place in the bin, T_k Chebyshev polynomials
  m.def(
      "binned_moments(Tensor input, Tensor target, Tensor? coefficient, Tensor? group, int num_groups, float inv_width, int first_bin, "
      "int bins, int terms) -> Tensor");
  // [N]: sum over k of table[group, target, b, k] T_k(t)
  m.def("binned_values(Tensor input, Tensor target, Tensor? group, Tensor table, float inv_width, int first_bin) -> Tensor");
  // pairwise sums of a surrogate over all pairs, and their derivatives, by one of the kernels above: python/nearlinear/ops/pairwise_auc.py
  m.def(
      "pairwise_sum(Tensor input, Tensor target, Tensor? coefficient, Tensor? group, int num_groups, str surrogate, "
      "float[] surrogate_params, str method, float[] score_range, bool wants_slope) -> (Tensor total, Tensor slope)");
  m.def(
      "pair_potential(Tensor input, Tensor target, Tensor coefficient, Tensor? group, int num_groups, str surrogate, "
      "float[] surrogate_params, int order, str method, float[] score_range) -> Tensor");
  // query [B, D], document [M, D], M >= B: the pairs of a diagonal score and any other one of query document^T, whatever their rows, their
  // moments and the bound of the scores that the bins are of: python/nearlinear/ops/linear_mw.py
  m.def(
      "linear_mw_sum(Tensor query, Tensor document, float inv_temperature, int? max_workspace_bytes=None) -> (Tensor total, "
      "Tensor moments, Tensor bound)");
  m.def(
      "linear_mw_sum_backward(Tensor d_total, Tensor query, Tensor document, Tensor moments, Tensor bound, float inv_temperature, "
      "int? max_workspace_bytes, bool[] wants) -> (Tensor d_query, Tensor d_document)");
}

STABLE_TORCH_LIBRARY_FRAGMENT(nearlinear, m) {
  // betti_matching. Shapes: input, target [N, *S] with one to three spatial dimensions, of one dtype. Rows are flat pixel indices inside an
  // image, by image and then homology dimension: matched [M, 4] births and deaths in input and in target, the others [., 2]; offsets
  // [N nd + 1, 3] are where the rows of each begin in the three tables. dims: the homology dimensions that are wanted.
  m.def(
      "betti_matching(Tensor input, Tensor target, int[] dims, bool superlevel, bool positive) -> (Tensor matched, Tensor unmatched_input, "
      "Tensor unmatched_target, Tensor offsets)");
  m.def("persistence_barcode(Tensor input, int[] dims, bool superlevel) -> (Tensor pairs, Tensor offsets)");
  // weights: of matched, unmatched input and unmatched target bars, for each homology dimension; loss [N]; gradients are empty unless
  // wanted
  m.def(
      "betti_matching_loss(Tensor input, Tensor target, float[] weights, bool superlevel, bool positive, float min_persistence, bool push, "
      "bool essential, bool wants_input, bool wants_target) -> (Tensor loss, Tensor d_input, Tensor d_target)");
}

STABLE_TORCH_LIBRARY_FRAGMENT(nearlinear, m) {
  // tensor_attention. Shapes: query [B, H, N, D], keys [B, G, N1, D] and [B, G, N2, D], values [B, G, N1 or N2, E], biases [B, G, N1 or N2]
  // in the dtype of the statistics, -inf for a key that takes no part; G divides H. Logit x = scale sum_c q_ic a_jc b_kc. window: how far
  // key1 and key2 may lie left and right of the query, [left, right, left, right], -1 for any distance. wants: gradients of the seven.
  m.def(
      "trilinear_softmax(Tensor query, Tensor key1, Tensor key2, Tensor value1, Tensor value2, Tensor? bias1, Tensor? bias2, float scale, "
      "int[] window) -> (Tensor out, Tensor lse)");
  m.def(
      "trilinear_softmax_backward(Tensor d_out, Tensor d_lse, Tensor query, Tensor key1, Tensor key2, Tensor value1, Tensor value2, "
      "Tensor? bias1, Tensor? bias2, Tensor out, Tensor lse, float scale, int[] window, bool[] wants) "
      "-> (Tensor d_query, Tensor d_key1, Tensor d_key2, Tensor d_value1, Tensor d_value2, Tensor d_bias1, Tensor d_bias2)");
  // sums [B, H, N, E + 1]: sum over j, k of w(x) e^(bias1_j + bias2_k) (v1_j * v2_k, 1), w = sum_m coefficients[m] x^m, or e^x minus that
  m.def(
      "trilinear_sums(Tensor query, Tensor key1, Tensor key2, Tensor value1, Tensor value2, Tensor? bias1, Tensor? bias2, float scale, "
      "int[] window, float[] coefficients, bool excess) -> Tensor sums");
  m.def(
      "trilinear_sums_backward(Tensor d_sums, Tensor query, Tensor key1, Tensor key2, Tensor value1, Tensor value2, Tensor? bias1, "
      "Tensor? bias2, float scale, int[] window, float[] coefficients, bool excess, bool[] wants) "
      "-> (Tensor d_query, Tensor d_key1, Tensor d_key2, Tensor d_value1, Tensor d_value2, Tensor d_bias1, Tensor d_bias2)");

  // taylor_attention. Features phi(u) [R]: the R = C(D + degree, degree) monomials of D channels up to the degree.
  // moments: [B, G, R, E + 1], sum_j e^bias_j phi(key_j) (value_j, 1)
  m.def("taylor_moments(Tensor key, Tensor value, Tensor? bias, int degree) -> Tensor moments");
  m.def(
      "taylor_moments_backward(Tensor d_moments, Tensor key, Tensor value, Tensor? bias, int degree, bool[] wants) "
      "-> (Tensor d_key, Tensor d_value, Tensor d_bias)");
  m.def("taylor_apply(Tensor query, Tensor moments, int degree) -> Tensor sums");  // [B, H, N, E + 1]: phi(query_i)^T moments
  m.def(
      "taylor_apply_backward(Tensor d_sums, Tensor query, Tensor moments, int degree, bool[] wants) "
      "-> (Tensor d_query, Tensor d_moments)");
  // [B, H, N, E + 1]: sum_r phi_r(query_i) weight_r m1_r * m2_r, with m1, m2 the moments of keys 0 to i; weight [R] is a constant
  m.def(
      "taylor_scan(Tensor query, Tensor key1, Tensor key2, Tensor value1, Tensor value2, Tensor? bias1, Tensor? bias2, Tensor weight, "
      "int degree) -> Tensor sums");
  m.def(
      "taylor_scan_backward(Tensor d_sums, Tensor query, Tensor key1, Tensor key2, Tensor value1, Tensor value2, Tensor? bias1, "
      "Tensor? bias2, Tensor weight, int degree, bool[] wants) "
      "-> (Tensor d_query, Tensor d_key1, Tensor d_key2, Tensor d_value1, Tensor d_value2, Tensor d_bias1, Tensor d_bias2)");
}

STABLE_TORCH_LIBRARY_FRAGMENT(nearlinear, m) {
  // segment_moments. Shapes: input [N, D], index int64 [N] of 0 to num_segments - 1 (None: N segments). sum float64 [S, D]; square float64
  // [S, D] for second_moment = diag, [S, D, D] for full, [0] for none; count int64 [S].
  m.def("segment_moments(Tensor input, Tensor index, int? num_segments, str second_moment) -> (Tensor sum, Tensor square, Tensor count)");
  m.def(
      "segment_moments_backward(Tensor d_sum, Tensor d_square, Tensor input, Tensor index, int? num_segments, str second_moment) "
      "-> Tensor d_input");
}
