// chunks of tokens as the scan reads them: channels and values of one group of heads in tiles, and back.
//
// A chunk of kChunk tokens has kLanes lanes; lane l holds tokens l K to l K + K - 1, K = kChunk / kLanes, one below the other. So running
// sums over tokens are made for all lanes at once, and what the lanes before have in all is added: see taylor_scan_kernels.h.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "../common/dispatch.h"
#include "taylor_features.h"

namespace nearlinear {

constexpr int64_t kChunk = 96;
template <typename T>
constexpr int64_t kSteps = kChunk / kLanes<T>;  // tokens of a lane

// where token t of a chunk lies
template <typename T>
constexpr int64_t place(int64_t t) {
  return t % kSteps<T> * kLanes<T> + t / kSteps<T>;
}

template <typename T>
NL_CLONES void add_all(const T* __restrict in, int64_t n, T* __restrict out) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] += in[i];
}

// Tiles of `count` chunks. Sets 0 and 1 are key1 and key2, set 2 + h is query head h; the first `wide` sets have columns. Padding is 0.
template <typename T>
class Chunks {
 public:
  const int64_t count, sets, dim, panels;

  Chunks(int64_t count_, int64_t sets_, int64_t dim_, int64_t panels_, int64_t wide)
      : count(count_),
        sets(sets_),
        dim(dim_),
        panels(panels_),
        narrow_((dim_ + 1) * kRow<T> + 2 * kChunk),
        size_(sets_ * narrow_ + wide * panels_ * kChunk * kLanes<T>),
        data_(lines<T>(count_ * size_)) {}

  // [dim + 1, kRow]: ones, then the channels: the features up to degree 1
  T* channels(int64_t chunk, int64_t set) const { return data_ + chunk * size_ + set * narrow_; }
  T* weights(int64_t chunk, int64_t set) const { return channels(chunk, set) + (dim + 1) * kRow<T>; }  // [kChunk]: e^bias; 1 for queries
  T* last(int64_t chunk, int64_t set) const { return weights(chunk, set) + kChunk; }                   // [kChunk]: column E of sums
  T* columns(int64_t chunk, int64_t set) const {  // [panels, kChunk, kLanes]: values, or columns of sums
    return channels(chunk, sets) + set * panels * kChunk * kLanes<T>;
  }
  void add(int64_t chunk, const Chunks& other) const { add_all(other.channels(chunk, 0), size_, channels(chunk, 0)); }
  void clear(int64_t chunk) const { std::fill_n(channels(chunk, 0), size_, T(0)); }

 private:
  int64_t narrow_, size_;
  Lines<T> data_;
};

// rows of tokens of one head in a tensor
template <typename scalar_t>
struct TokenRows {
  scalar_t* data;
  int64_t stride, step;  // from token to token, from element to element
};

// a row of channels, or zeros, to place `at` of a tile
template <typename T>
void pack_channels(const T* line, int64_t dim, T* tile, int64_t at) {
  tile[at] = 1;
  for (int64_t c = 0; c < dim; ++c) tile[(c + 1) * kRow<T> + at] = line[c];
}

template <typename T>
void pack_columns(const T* line, int64_t width, T* tile, int64_t at) {
  constexpr int64_t W = kLanes<T>;
  for (int64_t e = 0; e < width; e += W) std::copy_n(line + e, std::min(W, width - e), tile + e * kChunk + at * W);
}

template <typename T>
void add_columns(const T* tile, int64_t at, int64_t width, T* line) {
  constexpr int64_t W = kLanes<T>;
  for (int64_t e = 0; e < width; ++e) line[e] += tile[e / W * W * kChunk + at * W + e % W];
}

}  // namespace nearlinear
