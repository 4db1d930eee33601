// taylor_moments, CPU.   moments_re = sum_j e^bias_j phi_r(key_j) (value_j, 1)_e
// taylor_apply:          sums_ie = sum_r phi_r(query_i) moments_re
// backward:              d_value_j = e^bias_j phi(key_j)^T d_moments,        d phi(key_j) = e^bias_j d_moments (value_j, 1)^T,
//                        d_bias_j = e^bias_j phi(key_j)^T d_moments (value_j, 1),    d phi(query_i) = moments d_sums_i^T,
//                        d_moments = sum_i phi(query_i) d_sums_i
// Shapes: key [B, G, N, D], value [B, G, N, E], bias [B, G, N], query [B, H, N, D] with G dividing H, moments [B, G, R, E + 1] with
//   R = C(D + degree, degree), sums [B, H, N, E + 1]; any strides; moments and sums have the dtype of the statistics.
// Algorithm: the features of 128 tokens are made in runs of 132, feature-major, and multiplied while they lie in cache (taylor_features.h).
//   Moments: rows of features by rows of values, sums of a range of features that fits the L2 cache; the column of 1 is summed in 16 lanes,
//   as it would cost 16 columns. Sums, and gradients of features: tokens are the lanes. Gradients of features are folded into channels
//   by the reverse of how features are made.
// Cost: 2 N R (E + 1) FLOP for each of: moments, apply, d_moments, d_value with d_bias, d phi(key), d phi(query); one multiplication to
// make
//   a feature, two to fold one. Scratch: 600 (D + E) B + 1 MB a thread, whatever R; at most 16 MB in all where tokens of a head are split.
// Numerics: float32 (float64 for float64) sums over a tile, of 32 tiles, and of these; over a run of features, and of runs. A token with
//   bias -inf takes no part, whatever it holds. run_to_run, the same bits for any number of threads: a tile of tokens, or a range of
//   features with a part of the tokens, is one thread's; parts are cut by the shapes and added in order.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <array>
#include <optional>
#include <tuple>

#include "../common/dispatch.h"
#include "taylor_sums.h"

namespace nearlinear {
namespace {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// ---- arguments

void check_keys(const Tensor& key, const Tensor& value, const OptionalTensor& bias, const char* op) {
  check(key.dim() == 4, op, "key must have shape (B, G, N, D), got ", key.dim(), " dimensions");
  check(value.dim() == 4, op, "value must have shape (B, G, N, E), got ", value.dim(), " dimensions");
  for (int i = 0; i < 3; ++i)
    check(value.size(i) == key.size(i), op, "value must have shape (B, G, N, E), got size ", value.size(i), " in dimension ", i);
  check(value.scalar_type() == key.scalar_type(), op, "value must have the dtype of key");
  if (!bias.has_value()) return;
  const ScalarType dtype = bias->scalar_type();
  const bool floating = dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == key.scalar_type();
  check(floating, op, "bias must be float32, float64, or of the dtype of key");
  check(bias->dim() == 3, op, "bias must have shape (B, G, N), got ", bias->dim(), " dimensions");
  for (int i = 0; i < 3; ++i)
    check(bias->size(i) == key.size(i), op, "bias must have shape (B, G, N), got size ", bias->size(i), " in dimension ", i);
}

// like: what the dtype of the statistics follows from
void check_statistics(const Tensor& t, const Tensor& like, std::array<int64_t, 4> shape, const char* op, const char* argument) {
  bool fits = t.dim() == 4;
  for (int64_t i = 0; fits && i < 4; ++i) fits = t.size(i) == shape[static_cast<size_t>(i)];
  check(fits, op, argument, " must have shape (", shape[0], ", ", shape[1], ", ", shape[2], ", ", shape[3], ")");
  check(t.scalar_type() == opmath_dtype(like.scalar_type()), op, argument, " must have the dtype of the statistics");
}

Tensor wide_bias(const Tensor& key, const OptionalTensor& bias) {
  return bias.has_value() ? torch::stable::contiguous(torch::stable::to(*bias, opmath_dtype(key.scalar_type()))) : key;
}

Tensor gradient_of(const Tensor& t, bool wanted) {
  std::vector<int64_t> shape;
  for (int64_t i = 0; i < t.dim(); ++i) shape.push_back(t.size(i));
  return torch::stable::new_empty(t, wanted ? shape : std::vector<int64_t>{0});
}

template <typename T>
T* pointer(const Tensor& t, bool wanted) {
  return wanted ? static_cast<T*>(t.data_ptr()) : nullptr;
}

// ---- taylor_moments

// the keys of a call
template <typename scalar_t>
struct Keys : Tiles {
  using T = opmath_t<scalar_t>;
  const Tensor &key, &value;
  const Tensor wide;
  const T* bias;
  const int64_t D, E;

  Keys(const Tensor& key_, const Tensor& value_, const OptionalTensor& bias_)
      : Tiles(key_), key(key_), value(value_), wide(wide_bias(key_, bias_)), D(key.size(3)), E(value.size(3)) {
    bias = bias_.has_value() ? static_cast<const T*>(wide.data_ptr()) : nullptr;
  }

  void load(int64_t head, int64_t i, const FeatureTile<T>& tile, Weights<T>* weights) const {
    weights->load(bias == nullptr ? nullptr : bias + place(head, i), tokens(i));
    load_columns<scalar_t, T>(of<scalar_t>(key, head, i, D), tile.u);
    weights->clear_columns(D, tile.u);
  }
};

Tensor taylor_moments_cpu(const Tensor& key, const Tensor& value, const OptionalTensor& bias, int64_t degree) {
  const char* op = "taylor_moments";
  check_keys(key, value, bias, op);
  const FeatureTable table(key.size(3), degree, op);
  Tensor out = torch::stable::new_empty(key, {key.size(0), key.size(1), table.count(), value.size(3) + 1}, opmath_dtype(key.scalar_type()));
  dispatch_floating(key.scalar_type(), op, "key", [&](auto zero) {
    using scalar_t = decltype(zero);
    using T = opmath_t<scalar_t>;
    const Keys<scalar_t> keys(key, value, bias);
    auto load = [&](int64_t head, int64_t i, const FeatureTile<T>& tile, ValueTile<T>& values) {
      Weights<T> weights;
      keys.load(head, i, tile, &weights);
      load_rows<scalar_t, T>(keys.template of<scalar_t>(value, head, i, keys.E), weights.value, values.stride, values.rows);
      weights.clear_rows(values.stride, values.rows);
      std::copy_n(weights.value, kTokens, values.last);
      return keys.tokens(i);
    };
    sum_moments<T>(table, key.size(0) * key.size(1), keys.E, keys.tiles, load, static_cast<T*>(out.data_ptr()));
  });
  return out;
}

// gradients of the keys, values and biases of a call; those that nobody wants are null
template <typename scalar_t>
struct KeyGradients {
  using T = opmath_t<scalar_t>;
  scalar_t *key, *value;
  T* bias;

  void add(const Keys<scalar_t>& keys, int64_t head, int64_t i, const T* d_moments, FeatureTile<T>& tile, Fold<T>& fold, T* x,
           T* sums) const {
    const int64_t n = keys.tokens(i), token = keys.place(head, i), E = keys.E;
    Weights<T> weights;
    keys.load(head, i, tile, &weights);
    tile.prepare(n);
    load_columns<scalar_t, T>(keys.template of<scalar_t>(keys.value, head, i, E), x);
    weigh_columns<T>(weights.value, E, tile.tokens, x);
    weights.clear_columns(E, x);
    std::copy_n(weights.value, kTokens, x + E * kRow<T>);
    if (key != nullptr) {
      fold(tile, d_moments, E + 1, x);
      weights.clear_columns(keys.D, fold.d_u);
      store_columns<scalar_t, T>(fold.d_u, {key + token * keys.D, n, keys.D, keys.D, 1});
    }
    if (value == nullptr && bias == nullptr) return;
    multiply_features<T>(tile, d_moments, E + 1, sums);
    weights.clear_columns(E + 1, sums);
    if (bias != nullptr) column_products<T>(x, sums, E + 1, n, bias + token);
    if (value == nullptr) return;
    weigh_columns<T>(weights.value, E, tile.tokens, sums);
    store_columns<scalar_t, T>(sums, {value + token * E, n, E, E, 1});
  }
};

std::tuple<Tensor, Tensor, Tensor> taylor_moments_backward_cpu(const Tensor& d_moments, const Tensor& key, const Tensor& value,
                                                               const OptionalTensor& bias, int64_t degree, std::vector<bool> wants) {
  const char* op = "taylor_moments_backward";
  check_keys(key, value, bias, op);
  check(wants.size() == 3, op, "wants must have 3 elements, got ", wants.size());
  const FeatureTable table(key.size(3), degree, op);
  const int64_t columns = value.size(3) + 1, heads = key.size(0) * key.size(1), size = table.count() * columns;
  check_statistics(d_moments, key, {key.size(0), key.size(1), table.count(), columns}, op, "d_moments");
  const Tensor d = torch::stable::contiguous(d_moments);
  const bool wants_bias = wants[2] && bias.has_value();
  const Tensor d_key = gradient_of(key, wants[0]), d_value = gradient_of(value, wants[1]), wide = wide_bias(key, bias);
  const Tensor d_bias = gradient_of(bias.has_value() ? wide : key, wants_bias);
  dispatch_floating(key.scalar_type(), op, "key", [&](auto zero) {
    using scalar_t = decltype(zero);
    using T = opmath_t<scalar_t>;
    const Keys<scalar_t> keys(key, value, bias);
    const KeyGradients<scalar_t> gradients{pointer<scalar_t>(d_key, wants[0]), pointer<scalar_t>(d_value, wants[1]),
                                           pointer<T>(d_bias, wants_bias)};
    parallel_for(0, heads * keys.tiles, 1, [&](int64_t begin, int64_t end) {
      FeatureTile<T> tile(table);
      Fold<T> fold(table);
      const Lines<T> x(columns * kRow<T>), sums(columns * kRow<T>);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t head = task / keys.tiles;
        gradients.add(keys, head, task % keys.tiles, static_cast<const T*>(d.data_ptr()) + head * size, tile, fold, x, sums);
      }
    });
  });
  return {d_key, d_value, wants_bias ? torch::stable::to(d_bias, bias->scalar_type()) : d_bias};
}

// ---- taylor_apply

void check_queries(const Tensor& query, const Tensor& moments, const FeatureTable& table, const char* op) {
  check(moments.dim() == 4, op, "moments must have shape (B, G, R, E + 1), got ", moments.dim(), " dimensions");
  check(moments.size(1) > 0 && query.size(1) % moments.size(1) == 0, op, "the heads of moments must divide those of query, got ",
        moments.size(1), " and ", query.size(1));
  check_statistics(moments, query, {query.size(0), moments.size(1), table.count(), moments.size(3)}, op, "moments");
  check(moments.size(3) > 0, op, "moments must have shape (B, G, R, E + 1), got 0 columns");
}

// the queries of a call
template <typename scalar_t>
struct Queries : Tiles {
  using T = opmath_t<scalar_t>;
  const Tensor& query;
  const int64_t all, group, D, columns;  // all: heads of the batch; group: heads that share moments

  Queries(const Tensor& query_, const Tensor& moments)
      : Tiles(query_),
        query(query_),
        all(query.size(0) * heads),
        group(heads / moments.size(1)),
        D(query.size(3)),
        columns(moments.size(3)) {}

  void prepare(int64_t head, int64_t i, FeatureTile<T>& tile) const {
    load_columns<scalar_t, T>(of<scalar_t>(query, head, i, D), tile.u);
    tile.prepare(tokens(i));
  }
};

Tensor taylor_apply_cpu(const Tensor& query, const Tensor& moments, int64_t degree) {
  const char* op = "taylor_apply";
  check(query.dim() == 4, op, "query must have shape (B, H, N, D), got ", query.dim(), " dimensions");
  const FeatureTable table(query.size(3), degree, op);
  check_queries(query, moments, table, op);
  const Tensor M = torch::stable::contiguous(moments);
  const int64_t columns = moments.size(3);
  Tensor out = torch::stable::new_empty(query, {query.size(0), query.size(1), query.size(2), columns}, moments.scalar_type());
  dispatch_floating(query.scalar_type(), op, "query", [&](auto zero) {
    using scalar_t = decltype(zero);
    using T = opmath_t<scalar_t>;
    const Queries<scalar_t> queries(query, moments);
    parallel_for(0, queries.all * queries.tiles, 1, [&](int64_t begin, int64_t end) {
      FeatureTile<T> tile(table);
      const Lines<T> sums(columns * kRow<T>);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t head = task / queries.tiles, i = task % queries.tiles;
        queries.prepare(head, i, tile);
        multiply_features<T>(tile, static_cast<const T*>(M.data_ptr()) + head / queries.group * table.count() * columns, columns, sums);
        T* to = static_cast<T*>(out.data_ptr()) + queries.place(head, i) * columns;
        store_columns<T, T>(sums, {to, queries.tokens(i), columns, columns, 1});
      }
    });
  });
  return out;
}

// d_query: a tile is one thread's
template <typename scalar_t, typename T = opmath_t<scalar_t>>
void query_gradient(const FeatureTable& table, const Queries<scalar_t>& queries, const Tensor& d_sums, const T* moments, scalar_t* out) {
  const int64_t columns = queries.columns, D = queries.D;
  parallel_for(0, queries.all * queries.tiles, 1, [&](int64_t begin, int64_t end) {
    FeatureTile<T> tile(table);
    Fold<T> fold(table);
    const Lines<T> x(columns * kRow<T>);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t head = task / queries.tiles, i = task % queries.tiles;
      queries.prepare(head, i, tile);
      load_columns<T, T>(queries.template of<T>(d_sums, head, i, columns), x);
      fold(tile, moments + head / queries.group * table.count() * columns, columns, x);
      store_columns<scalar_t, T>(fold.d_u, {out + queries.place(head, i) * D, queries.tokens(i), D, D, 1});
    }
  });
}

// d_moments: the sums over the tokens of all query heads of a group, in order
template <typename scalar_t, typename T = opmath_t<scalar_t>>
void moments_gradient(const FeatureTable& table, const Queries<scalar_t>& queries, const Tensor& d_sums, T* out) {
  const int64_t E = queries.columns - 1;
  Weights<T> ones;
  ones.load(nullptr, kTokens);
  auto load = [&](int64_t problem, int64_t place, const FeatureTile<T>& tile, ValueTile<T>& values) {
    const int64_t head = problem * queries.group + place / queries.tiles, i = place % queries.tiles;
    load_columns<scalar_t, T>(queries.template of<scalar_t>(queries.query, head, i, queries.D), tile.u);
    load_rows<T, T>(queries.template of<T>(d_sums, head, i, E), ones.value, values.stride, values.rows);
    load_columns<T, T>(queries.template of<T>(d_sums, head, i, 1, E), values.last);
    return queries.tokens(i);
  };
  sum_moments<T>(table, queries.all / queries.group, E, queries.group * queries.tiles, load, out);
}

std::tuple<Tensor, Tensor> taylor_apply_backward_cpu(const Tensor& d_sums, const Tensor& query, const Tensor& moments, int64_t degree,
                                                     std::vector<bool> wants) {
  const char* op = "taylor_apply_backward";
  check(query.dim() == 4, op, "query must have shape (B, H, N, D), got ", query.dim(), " dimensions");
  check(wants.size() == 2, op, "wants must have 2 elements, got ", wants.size());
  const FeatureTable table(query.size(3), degree, op);
  check_queries(query, moments, table, op);
  check_statistics(d_sums, query, {query.size(0), query.size(1), query.size(2), moments.size(3)}, op, "d_sums");
  const Tensor M = torch::stable::contiguous(moments), d_query = gradient_of(query, wants[0]), d_moments = gradient_of(moments, wants[1]);
  dispatch_floating(query.scalar_type(), op, "query", [&](auto zero) {
    using scalar_t = decltype(zero);
    using T = opmath_t<scalar_t>;
    const Queries<scalar_t> queries(query, moments);
    if (wants[0]) query_gradient(table, queries, d_sums, static_cast<const T*>(M.data_ptr()), static_cast<scalar_t*>(d_query.data_ptr()));
    if (wants[1]) moments_gradient(table, queries, d_sums, static_cast<T*>(d_moments.data_ptr()));
  });
  return {d_query, d_moments};
}

}  // namespace
}  // namespace nearlinear

STABLE_TORCH_LIBRARY_IMPL(nearlinear, CPU, m) {
  m.impl("taylor_moments", TORCH_BOX(&nearlinear::taylor_moments_cpu));
  m.impl("taylor_moments_backward", TORCH_BOX(&nearlinear::taylor_moments_backward_cpu));
  m.impl("taylor_apply", TORCH_BOX(&nearlinear::taylor_apply_cpu));
  m.impl("taylor_apply_backward", TORCH_BOX(&nearlinear::taylor_apply_backward_cpu));
}
