// records put together by segment and sorted by key inside each: the part of the ROC kernels that takes the time.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "../common/memory.h"

namespace nearlinear {

using torch::stable::parallel_for;

template <typename key_type>
struct Keyed {
  using key_t = key_type;
  key_t key;
  int64_t mass() const { return 1; }
  bool operator<(const Keyed& other) const { return key < other.key; }
};

template <typename key_type, typename weight_t>
struct Weighed {
  using key_t = key_type;
  key_t key;
  weight_t weight;
  double mass() const { return static_cast<double>(weight); }
  bool operator<(const Weighed& other) const { return key < other.key; }
};

// equal keys stay in the order of the elements
template <typename key_type>
struct Indexed {
  using key_t = key_type;
  key_t key, index;
  bool operator<(const Indexed& other) const { return key < other.key || (key == other.key && index < other.index); }
};

template <typename record_t>
struct Span {
  const record_t* data;
  int64_t size;
};

template <typename T>
std::unique_ptr<T[]> scratch(int64_t n) {
  auto data = std::make_unique_for_overwrite<T[]>(static_cast<size_t>(n));
  advise_huge_pages(data.get(), static_cast<size_t>(n) * sizeof(T));
  return data;
}

// Work is cut into pieces of this many records whatever the number of threads, so that the order of equal keys, and with it every bit of
// a weighted sum, is the same for any number.
constexpr int64_t kPiece = int64_t{1} << 17;
inline int64_t pieces_of(int64_t n) { return (n + kPiece - 1) / kPiece; }

using Places = std::array<int64_t, 256>;

// Least significant digit first, 8 bits a pass: 256 open cache lines fit the L1 cache, and the number of passes is even. A digit that all
// keys share is passed over. `places` has one element per piece.
template <typename record_t>
void radix_sort(record_t* data, record_t* other, int64_t n, Places* places) {
  record_t *from = data, *to = other;
  const int64_t pieces = pieces_of(n);
  for (unsigned shift = 0; shift < 8 * sizeof(typename record_t::key_t); shift += 8) {
    const auto digit = [shift](const record_t& r) { return static_cast<size_t>(r.key >> shift) & 255; };
    parallel_for(0, pieces, 1, [&](int64_t first, int64_t last) {
      for (int64_t p = first; p < last; ++p) {
        places[p].fill(0);
        for (int64_t i = p * kPiece; i < std::min(n, (p + 1) * kPiece); ++i) ++places[p][digit(from[i])];
      }
    });
    int64_t begin = 0, largest = 0;
    for (size_t d = 0; d < 256; ++d) {
      const int64_t before = begin;
      for (int64_t p = 0; p < pieces; ++p) begin += std::exchange(places[p][d], begin);
      largest = std::max(largest, begin - before);
    }
    if (largest == n) continue;
    parallel_for(0, pieces, 1, [&](int64_t first, int64_t last) {
      for (int64_t p = first; p < last; ++p) {
        Places place = places[p];  // a local copy: no store to `to` can change it
        for (int64_t i = p * kPiece; i < std::min(n, (p + 1) * kPiece); ++i) to[place[digit(from[i])]++] = from[i];
      }
    });
    std::swap(from, to);
  }
  if (from != data) std::copy_n(from, n, data);
}

// Segments of records, each sorted by key. Peak memory: two buffers of n records, and the ends of the segments.
template <typename record_t>
class SortedSegments {
 public:
  // segment_of(i): segment of element i, -1 to leave it out; record_of(i): its record
  template <typename segment_of_t, typename record_of_t>
  SortedSegments(int64_t n, int64_t segments, segment_of_t segment_of, record_of_t record_of)
      : ends_(static_cast<size_t>(segments) + 1, 0), records_(scratch<record_t>(n)) {
    partition(n, segments, segment_of, record_of);
    sort();
  }

  Span<record_t> operator[](int64_t s) const { return {records_.get() + begin(s), ends_[s + 1] - ends_[s]}; }
  int64_t begin(int64_t s) const { return ends_[static_cast<size_t>(s)]; }
  const record_t* records() const { return records_.get(); }
  // room for a record of each element, no longer needed for the sort
  record_t* spare() { return spare_.get(); }

 private:
  int64_t size(int64_t s) const { return begin(s + 1) - begin(s); }

  template <typename segment_of_t, typename record_of_t>
  void partition(int64_t n, int64_t segments, segment_of_t segment_of, record_of_t record_of) {
    // a count for each piece and segment: with many segments one piece, or the counts would outgrow the records
    const int64_t pieces = segments <= 256 ? pieces_of(n) : 1, length = pieces > 1 ? kPiece : n;
    std::vector<int64_t> places(static_cast<size_t>(pieces * segments), 0);
    parallel_for(0, pieces, 1, [&](int64_t first, int64_t last) {
      for (int64_t p = first; p < last; ++p) {
        int64_t* count = places.data() + p * segments;
        for (int64_t i = p * length; i < std::min(n, (p + 1) * length); ++i)
          if (const int64_t s = segment_of(i); s >= 0) ++count[s];
      }
    });
    int64_t next = 0;
    for (int64_t s = 0; s < segments; ++s) {
      for (int64_t p = 0; p < pieces; ++p) next += std::exchange(places[static_cast<size_t>(p * segments + s)], next);
      ends_[static_cast<size_t>(s) + 1] = next;
    }
    parallel_for(0, pieces, 1, [&](int64_t first, int64_t last) {
      for (int64_t p = first; p < last; ++p) {
        int64_t* place = places.data() + p * segments;
        for (int64_t i = p * length; i < std::min(n, (p + 1) * length); ++i)
          if (const int64_t s = segment_of(i); s >= 0) records_[static_cast<size_t>(place[s]++)] = record_of(i);
      }
    });
  }

  // long segments one after another, each by all threads; then the short ones, each by one
  void sort() {
    const int64_t segments = static_cast<int64_t>(ends_.size()) - 1;
    spare_ = scratch<record_t>(ends_.back());
    record_t *data = records_.get(), *other = spare_.get();
    std::vector<Places> places;
    for (int64_t s = 0; s < segments; ++s) {
      if (size(s) <= kPiece) continue;
      places.resize(static_cast<size_t>(pieces_of(size(s))));
      radix_sort(data + begin(s), other + begin(s), size(s), places.data());
    }
    const int64_t grain = std::max<int64_t>(1, segments * 4096 / std::max<int64_t>(ends_.back(), 1));
    parallel_for(0, segments, grain, [&](int64_t first, int64_t last) {
      for (int64_t s = first; s < last; ++s) {
        const int64_t n = size(s);
        Places place;
        if (n > kPiece) continue;
        if (n > 512) {
          radix_sort(data + begin(s), other + begin(s), n, &place);
        } else {
          std::sort(data + begin(s), data + begin(s) + n);
        }
      }
    });
  }

  std::vector<int64_t> ends_;  // ends_[s + 1] is the end of segment s
  std::unique_ptr<record_t[]> records_, spare_;
};

}  // namespace nearlinear
