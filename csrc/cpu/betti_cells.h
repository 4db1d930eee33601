// what the sweeps over pictures keep their cells in: memory that outlives an image, keys in one word, numbered sets, and a sort.
#pragma once
#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <memory>
#include <numeric>
#include <utility>

#include "betti_bars.h"

namespace nearlinear::betti {

// memory that is kept between images, without initial values
template <typename T>
class Buffer {
 public:
  T* room(size_t n) {
    if (n > capacity_) capacity_ = n, data_ = std::make_unique_for_overwrite<T[]>(n);
    return data_.get();
  }
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  T& operator[](size_t i) { return data_[i]; }
  const T& operator[](size_t i) const { return data_[i]; }

 private:
  std::unique_ptr<T[]> data_;
  size_t capacity_ = 0;
};

// (value, index) in one word
inline uint64_t pack(uint32_t value, uint32_t index) { return uint64_t{value} << 32 | index; }
inline uint32_t value_of(uint64_t key) { return static_cast<uint32_t>(key >> 32); }
inline uint32_t index_of(uint64_t key) { return static_cast<uint32_t>(key); }

// cells and their numbers in ascending order: a bit each, and a count for every 64
class CellSet {
 public:
  void start(uint32_t cells) {
    words_ = (cells + 63) / 64;
    std::fill_n(bits_.room(words_), words_, uint64_t{0});
  }
  void insert(uint32_t cell) { bits_[cell / 64] |= uint64_t{1} << cell % 64; }
  // after the last insertion
  uint32_t number() {
    uint32_t* before = before_.room(words_);
    uint32_t count = 0;
    for (uint32_t w = 0; w < words_; ++w) before[w] = count, count += static_cast<uint32_t>(std::popcount(bits_[w]));
    return count;
  }
  // number of a cell; kNone if it is not in the set, or kNone itself
  uint32_t find(uint32_t cell) const {
    if (cell == kNone) return kNone;
    const uint64_t word = bits_[cell / 64], bit = uint64_t{1} << cell % 64;
    return word & bit ? before_[cell / 64] + static_cast<uint32_t>(std::popcount(word & (bit - 1))) : kNone;
  }
  template <typename F>
  void for_each(F&& f) const {
    for (uint32_t w = 0; w < words_; ++w)
      for (uint64_t word = bits_[w]; word != 0; word &= word - 1) f(64 * w + static_cast<uint32_t>(std::countr_zero(word)));
  }

 private:
  Buffer<uint64_t> bits_;
  Buffer<uint32_t> before_;
  uint32_t words_ = 0;
};

// least significant digit first; a digit that all keys share is passed over, so few levels cost one pass
template <int kBits, typename record_t>
record_t* sort_by_digits(record_t* from, record_t* to, size_t n) {
  using key_t = typename record_t::key_t;
  constexpr size_t digits = (8 * sizeof(key_t) + kBits - 1) / kBits, size = size_t{1} << kBits;
  std::array<std::array<uint32_t, size>, digits> count{};
  const auto digit_of = [](key_t key, size_t d) { return static_cast<size_t>(key >> (kBits * d)) & (size - 1); };
  for (size_t i = 0; i < n; ++i)
    for (size_t d = 0; d < digits; ++d) ++count[d][digit_of(from[i].key, d)];
  for (size_t d = 0; d < digits; ++d) {
    if (n == 0 || count[d][digit_of(from[0].key, d)] == n) continue;
    uint32_t begin = 0;
    for (uint32_t& c : count[d]) begin += std::exchange(c, begin);
    for (size_t i = 0; i < n; ++i) to[count[d][digit_of(from[i].key, d)]++] = from[i];
    std::swap(from, to);
  }
  return from;
}

// where the sorted records are: `from` or `to`
template <typename record_t>
record_t* sort_records(record_t* from, record_t* to, size_t n) {
  return n < 4096 ? sort_by_digits<8>(from, to, n) : sort_by_digits<11>(from, to, n);
}

}  // namespace nearlinear::betti
