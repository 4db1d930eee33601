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

// tile[j][lane]: along whichever side is contiguous in memory
template <typename op_t>
void load_tile(const Blocks<op_t>& in, int64_t base, int64_t stride_v, int64_t stride_lane, int64_t classes, int64_t lanes, op_t* tile) {
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

// one more tile of classes into the running maxima and sums; the target class is taken out by replacing it with -inf
template <typename op_t>
NL_CLONES void accumulate_tile(const op_t* __restrict tile, int64_t classes, TileState<op_t>& s) {
  alignas(64) op_t m[kLanes], shift[kLanes], add[kLanes];
  for (int64_t l = 0; l < kLanes; ++l) m[l] = s.max[l];
  for (int64_t j = 0; j < classes; ++j)
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) m[l] = tile[j * kLanes + l] > m[l] ? tile[j * kLanes + l] : m[l];
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

template <typename op_t, typename map_t>
void forward_tile(const Logits& L, const Lanes& G, const Blocks<op_t>& in, map_t map, const op_t* weight, int64_t t, const int64_t* target,
                  int64_t ignore_index, const RowOutputs<op_t>& out) {
  alignas(64) op_t tile[kTileClasses * kLanes] = {};
  TileState<op_t> s;
  const int64_t o = t / G.tiles_per_outer(), first = (t % G.tiles_per_outer()) * kLanes;
  const int64_t lanes = std::min(kLanes, G.lanes - first), row = o * G.lanes + first, base = o * G.stride_outer + first * G.stride_lane;
  const int64_t* y = target + row;
  for (int64_t l = 0; l < kLanes; ++l) {
    s.max[l] = -simd::infinity<op_t>, s.sum[l] = 0, s.deviation[l] = 0, s.z_y[l] = 0;
    if (l < lanes && y[l] != ignore_index) s.z_y[l] = map.value(in.element(base + l * G.stride_lane + y[l] * L.stride_v));
  }
  for (int64_t begin = 0; begin < L.classes; begin += kTileClasses) {
    const int64_t n = std::min(kTileClasses, L.classes - begin);
    load_tile(in, base + begin * L.stride_v, L.stride_v, G.stride_lane, n, lanes, tile);
    if constexpr (!std::is_same_v<map_t, IdentityMap>) map_values(map, tile, n * kLanes);
    if (out.spread != nullptr) accumulate_deviation(tile, n, weight == nullptr ? nullptr : weight + begin, s);
    for (int64_t l = 0; l < lanes; ++l)
      if (y[l] >= begin && y[l] < begin + n) tile[(y[l] - begin) * kLanes + l] = -simd::infinity<op_t>;
    accumulate_tile(tile, n, s);
  }
  const double weight_sum = sum_of(weight, L.classes);
  for (int64_t l = 0; l < lanes; ++l) {
    const int64_t r = row + l;
    if (y[l] == ignore_index) {
      out.nll[r] = out.lse[r] = out.residual[r] = 0;
      if (out.spread != nullptr) out.spread[r] = 0;
      continue;
    }
    row_statistics(s.z_y[l], s.max[l], s.sum[l], out.nll + r, out.lse + r, out.residual + r);
    if (out.spread == nullptr) continue;
    const double nll = out.nll[r];
    out.spread[r] = static_cast<op_t>(nll == simd::infinity<double> ? nll : weight_sum * nll + s.deviation[l]);
  }
}

template <typename op_t>
struct TileUpstream {
  alignas(64) op_t total[kLanes], spread[kLanes], lse[kLanes], residual[kLanes];
};

template <typename op_t>
NL_CLONES void tile_gradient(const op_t* __restrict z, int64_t classes, const op_t* __restrict weight, const TileUpstream<op_t>& up,
                             op_t* __restrict d) {
  for (int64_t j = 0; j < classes; ++j) {
    const op_t w = weight == nullptr ? op_t(1) : weight[j];
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l)
      d[j * kLanes + l] = up.total[l] * simd::exp((z[j * kLanes + l] - up.lse[l]) - up.residual[l]) - up.spread[l] * w;
  }
}

template <typename op_t, typename map_t>
void backward_tile(const Logits& L, const Lanes& G, const Blocks<op_t>& in, map_t map, const op_t* weight, int64_t t, const int64_t* target,
                   int64_t ignore_index, const RowUpstream<op_t>& up, const Lanes& GD, int64_t d_stride_v, const Blocks<op_t>& d_in) {
  alignas(64) op_t a[kTileClasses * kLanes] = {}, z[kTileClasses * kLanes], d[kTileClasses * kLanes];
  TileUpstream<op_t> tile_up;
  bool live[kLanes];
  const int64_t o = t / G.tiles_per_outer(), first = (t % G.tiles_per_outer()) * kLanes;
  const int64_t lanes = std::min(kLanes, G.lanes - first), row = o * G.lanes + first;
  const int64_t base = o * G.stride_outer + first * G.stride_lane, d_base = o * GD.stride_outer + first * GD.stride_lane;
  for (int64_t l = 0; l < kLanes; ++l) {
    live[l] = l < lanes && target[row + l] != ignore_index && !up.is_zero(row + l);
    tile_up.total[l] = live[l] ? up.total(row + l) : op_t(0);
    tile_up.spread[l] = live[l] ? up.spread(row + l) : op_t(0);
    tile_up.lse[l] = live[l] ? up.lse[row + l] : op_t(0);
    tile_up.residual[l] = live[l] ? up.residual[row + l] : op_t(0);
  }
  for (int64_t begin = 0; begin < L.classes; begin += kTileClasses) {
    const int64_t n = std::min(kTileClasses, L.classes - begin);
    const op_t* w = weight == nullptr ? nullptr : weight + begin;
    load_tile(in, base + begin * L.stride_v, L.stride_v, G.stride_lane, n, lanes, a);
    std::copy_n(a, n * kLanes, z);
    if constexpr (!std::is_same_v<map_t, IdentityMap>) map_values(map, z, n * kLanes);
    tile_gradient(z, n, w, tile_up, d);
    for (int64_t l = 0; l < lanes; ++l) {
      const int64_t k = target[row + l] - begin;
      if (live[l] && k >= 0 && k < n) d[k * kLanes + l] = up.target(row + l, w == nullptr ? op_t(1) : w[k]);
    }
    if constexpr (!std::is_same_v<map_t, IdentityMap>) times_map_slope(map, a, d, n * kLanes);
    for (int64_t l = 0; l < lanes; ++l)
      if (!live[l])
        for (int64_t j = 0; j < n; ++j) d[j * kLanes + l] = 0;
    store_tile(d_in, d_base + begin * d_stride_v, d_stride_v, GD.stride_lane, n, lanes, d);
  }
}

}  // namespace nearlinear
