// logit_stats where classes are few, or strided while pixels are not: tiles of 64 rows, vectorised across rows.
#pragma once
#include "cross_entropy_rows.h"

namespace nearlinear {

// rows and classes of a tile: 16 KB of float
constexpr int64_t kLanes = 64, kTileClasses = 64;

// The rows as lanes: the pixels of one image where there are pixels, else the batch.
struct Lanes {
  int64_t outer, lanes, stride_outer, stride_lane;
  explicit Lanes(const Logits& L)
      : outer(L.pixels == 1 ? 1 : L.batch),
        lanes(L.pixels == 1 ? L.batch : L.pixels),
        stride_outer(L.pixels == 1 ? 0 : L.stride_b),
        stride_lane(L.pixels == 1 ? L.stride_b : L.stride_p) {}
  int64_t tiles_per_outer() const { return (lanes + kLanes - 1) / kLanes; }
  int64_t tiles() const { return outer * tiles_per_outer(); }
};

bool prefers_tiles(const Logits& L) { return L.classes <= kTileClasses || (L.stride_v != 1 && L.pixels > 1 && L.stride_p == 1); }

// tile[j][lane], along whichever side is contiguous in memory; lanes beyond the rows are 0
template <typename op_t>
void load_tile(const Blocks<op_t>& in, int64_t base, int64_t stride_v, int64_t stride_lane, int64_t classes, int64_t lanes, op_t* tile) {
  if (lanes < kLanes) std::fill_n(tile, classes * kLanes, op_t(0));
  if (stride_v == 1 && stride_lane != 1) {
    op_t row[kTileClasses];
    for (int64_t l = 0; l < lanes; ++l) {
      in.load(base + l * stride_lane, 1, classes, row);
      for (int64_t j = 0; j < classes; ++j) tile[j * kLanes + l] = row[j];
    }
  } else {
    for (int64_t j = 0; j < classes; ++j) in.load(base + j * stride_v, stride_lane, lanes, tile + j * kLanes);
  }
}

template <typename op_t>
void store_tile(const Blocks<op_t>& out, int64_t base, int64_t stride_v, int64_t stride_lane, int64_t classes, int64_t lanes,
                const op_t* tile) {
  if (stride_v == 1 && stride_lane != 1) {
    op_t row[kTileClasses];
    for (int64_t l = 0; l < lanes; ++l) {
      for (int64_t j = 0; j < classes; ++j) row[j] = tile[j * kLanes + l];
      out.store(row, classes, base + l * stride_lane, 1);
    }
  } else {
    for (int64_t j = 0; j < classes; ++j) out.store(tile + j * kLanes, lanes, base + j * stride_v, stride_lane);
  }
}

template <typename op_t>
struct TileState {
  alignas(64) op_t max[kLanes], sum[kLanes], deviation[kLanes], z_y[kLanes];
};

// target class of each lane relative to the first class of a tile; -1 where it is elsewhere, or the lane is ignored or beyond the rows
NL_CLONES inline void lane_targets(const int64_t* __restrict y, int64_t lanes, int64_t ignore_index, int64_t begin, int64_t classes,
                                   int32_t* __restrict k) {
#pragma omp simd
  for (int64_t l = 0; l < lanes; ++l) {
    const int64_t relative = y[l] - begin;
    k[l] = y[l] == ignore_index || relative < 0 || relative >= classes ? -1 : static_cast<int32_t>(relative);
  }
  for (int64_t l = lanes; l < kLanes; ++l) k[l] = -1;
}

// one more tile of classes into the running maxima and sums; the target's logit is taken out of them and kept
template <typename op_t>
NL_CLONES void accumulate_tile(op_t* __restrict tile, int64_t classes, const int32_t* __restrict k, TileState<op_t>& s) {
  alignas(64) op_t m[kLanes], shift[kLanes], add[kLanes];
  for (int64_t l = 0; l < kLanes; ++l) m[l] = s.max[l];
  for (int32_t j = 0; j < classes; ++j)
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) {
      const op_t v = tile[j * kLanes + l];
      s.z_y[l] = k[l] == j ? v : s.z_y[l];
      const op_t other = k[l] == j ? -simd::infinity<op_t> : v;
      tile[j * kLanes + l] = other;
      m[l] = other > m[l] ? other : m[l];
    }
#pragma omp simd
  for (int64_t l = 0; l < kLanes; ++l) {
    shift[l] = m[l] == -simd::infinity<op_t> ? op_t(0) : m[l];
    add[l] = s.sum[l] * simd::exp(s.max[l] - shift[l]);
    s.max[l] = m[l];
  }
  for (int64_t j = 0; j < classes; ++j)
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) add[l] += simd::exp(tile[j * kLanes + l] - shift[l]);
  for (int64_t l = 0; l < kLanes; ++l) s.sum[l] = add[l];
}

template <typename op_t>
NL_CLONES void accumulate_deviation(const op_t* __restrict tile, int64_t classes, const op_t* __restrict weight, TileState<op_t>& s) {
  for (int64_t j = 0; j < classes; ++j) {
    const op_t w = weight == nullptr ? op_t(1) : weight[j];
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) s.deviation[l] += w * (s.z_y[l] - tile[j * kLanes + l]);
  }
}

// the statistics of every lane; sum_w is the sum of the class weights
template <typename op_t>
NL_CLONES void finish_tile(const TileState<op_t>& s, op_t sum_w, op_t* __restrict nll, op_t* __restrict lse, op_t* __restrict residual,
                           op_t* __restrict spread) {
#pragma omp simd
  for (int64_t l = 0; l < kLanes; ++l) {
    row_statistics(s.z_y[l], s.max[l], s.sum[l], nll + l, lse + l, residual + l);
    spread[l] = nll[l] == simd::infinity<op_t> ? nll[l] : sum_w * nll[l] + s.deviation[l];
  }
}

// the rows of one tile
struct TileRows {
  int64_t row, lanes;
  int64_t outer, first;

  TileRows(const Lanes& G, int64_t t) : outer(t / G.tiles_per_outer()), first((t % G.tiles_per_outer()) * kLanes) {
    lanes = std::min(kLanes, G.lanes - first);
    row = outer * G.lanes + first;
  }
  int64_t base(const Lanes& G) const { return outer * G.stride_outer + first * G.stride_lane; }
};

template <typename op_t, typename map_t>
void forward_tile(const Logits& L, const Lanes& G, const Blocks<op_t>& in, map_t map, const op_t* weight, int64_t t, const int64_t* target,
                  int64_t ignore_index, const RowOutputs<op_t>& out) {
  alignas(64) op_t tile[kTileClasses * kLanes];
  alignas(64) op_t nll[kLanes], lse[kLanes], residual[kLanes], spread[kLanes];
  alignas(64) int32_t k[kLanes];
  TileState<op_t> s;
  const TileRows R(G, t);
  const int64_t base = R.base(G);
  const int64_t* y = target + R.row;
  for (int64_t l = 0; l < kLanes; ++l) s.max[l] = -simd::infinity<op_t>, s.sum[l] = 0, s.deviation[l] = 0, s.z_y[l] = 0;
  if (out.spread != nullptr)  // deviations count from the target logit, so it is needed before its turn
    for (int64_t l = 0; l < R.lanes; ++l)
      if (y[l] != ignore_index) s.z_y[l] = map.value(in.element(base + l * G.stride_lane + y[l] * L.stride_v));
  for (int64_t begin = 0; begin < L.classes; begin += kTileClasses) {
    const int64_t n = std::min(kTileClasses, L.classes - begin);
    load_tile(in, base + begin * L.stride_v, L.stride_v, G.stride_lane, n, R.lanes, tile);
    if constexpr (!std::is_same_v<map_t, IdentityMap>) map_values(map, tile, n * kLanes);
    if (out.spread != nullptr) accumulate_deviation(tile, n, weight == nullptr ? nullptr : weight + begin, s);
    lane_targets(y, R.lanes, ignore_index, begin, n, k);
    accumulate_tile(tile, n, k, s);
  }
  finish_tile(s, static_cast<op_t>(out.weight_sum), nll, lse, residual, spread);
  for (int64_t l = 0; l < R.lanes; ++l) {
    const bool kept = y[l] != ignore_index;
    const int64_t r = R.row + l;
    out.nll[r] = kept ? nll[l] : 0, out.lse[r] = kept ? lse[l] : 0, out.residual[r] = kept ? residual[l] : 0;
    if (out.spread != nullptr) out.spread[r] = kept ? spread[l] : 0;
  }
}

// upstream gradients and statistics of the lanes; a lane is live unless it is ignored, has no upstream or lies beyond the rows
template <typename op_t>
struct TileUpstream {
  alignas(64) op_t total[kLanes], d_nll[kLanes], without_nll[kLanes], spread[kLanes], nll[kLanes], lse[kLanes];
  alignas(64) int32_t live[kLanes];
};

// gradients of a tile of logits; k as in accumulate_tile. A lane that is not live gets zeros, whatever its logits are.
template <typename op_t>
NL_CLONES void tile_gradient(const op_t* __restrict z, int64_t classes, const op_t* __restrict weight, const int32_t* __restrict k,
                             const TileUpstream<op_t>& up, op_t* __restrict d) {
  alignas(64) op_t d_y[kLanes];
#pragma omp simd
  for (int64_t l = 0; l < kLanes; ++l) d_y[l] = up.without_nll[l] * simd::exp(-up.nll[l]) - up.d_nll[l] * simd::one_minus_exp(up.nll[l]);
  for (int32_t j = 0; j < classes; ++j) {
    const op_t w = weight == nullptr ? op_t(1) : weight[j];
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) {
      const op_t value = (k[l] == j ? d_y[l] : up.total[l] * simd::exp(z[j * kLanes + l] - up.lse[l])) - up.spread[l] * w;
      d[j * kLanes + l] = up.live[l] ? value : op_t(0);
    }
  }
}

// one row's upstream and statistics into its lane
template <typename op_t>
NL_CLONES void load_upstream(const RowUpstream<op_t>& up, const int64_t* __restrict y, int64_t row, int64_t lanes, int64_t ignore_index,
                             TileUpstream<op_t>& out) {
#pragma omp simd
  for (int64_t l = 0; l < lanes; ++l) {
    const int64_t r = row + l;
    out.d_nll[l] = up.d_nll[r], out.without_nll[l] = up.without_nll(r), out.spread[l] = up.spread(r);
    out.nll[l] = up.nll[r], out.lse[l] = up.lse[r], out.total[l] = up.total(r);
    out.live[l] = y[l] != ignore_index && !up.is_zero(r);
  }
}

template <typename op_t, typename map_t>
void backward_tile(const Logits& L, const Lanes& G, const Blocks<op_t>& in, map_t map, const op_t* weight, int64_t t, const int64_t* target,
                   int64_t ignore_index, const RowUpstream<op_t>& up, const Lanes& GD, int64_t d_stride_v, const Blocks<op_t>& d_in) {
  constexpr bool mapped = !std::is_same_v<map_t, IdentityMap>;
  alignas(64) op_t a[kTileClasses * kLanes], mapped_values[kTileClasses * kLanes], d[kTileClasses * kLanes];
  alignas(64) int32_t k[kLanes];
  TileUpstream<op_t> tile_up = {};
  const TileRows R(G, t);
  const int64_t* y = target + R.row;
  load_upstream(up, y, R.row, R.lanes, ignore_index, tile_up);
  for (int64_t begin = 0; begin < L.classes; begin += kTileClasses) {
    const int64_t n = std::min(kTileClasses, L.classes - begin);
    const op_t* w = weight == nullptr ? nullptr : weight + begin;
    const op_t* z = a;
    load_tile(in, R.base(G) + begin * L.stride_v, L.stride_v, G.stride_lane, n, R.lanes, a);
    if constexpr (mapped) {
      std::copy_n(a, n * kLanes, mapped_values);
      map_values(map, mapped_values, n * kLanes);
      z = mapped_values;
    }
    lane_targets(y, R.lanes, ignore_index, begin, n, k);
    tile_gradient(z, n, w, k, tile_up, d);
    if constexpr (mapped) times_map_slope(map, a, d, n * kLanes);
    store_tile(d_in, R.base(GD) + begin * d_stride_v, d_stride_v, GD.stride_lane, n, R.lanes, d);
  }
}

}  // namespace nearlinear
