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

// Sums are cut into pieces of this many records whatever the number of threads, so that every bit of them is the same for any number.
constexpr int64_t kPiece = int64_t{1} << 17;
inline int64_t pieces_of(int64_t n) { return (n + kPiece - 1) / kPiece; }

// equal keys keep their order however a sort is cut, and one piece has to be counted once only
inline int64_t sort_pieces(int64_t n) { return torch::stable::get_num_threads() > 1 ? pieces_of(n) : std::min<int64_t>(n, 1); }

using Places = std::array<int64_t, 256>;

template <typename record_t>
size_t digit_of(const record_t& r, size_t digit) {
  return static_cast<size_t>(r.key >> (8 * digit)) & 255;
}

// the arguments are local copies, which no store to a record can change
template <typename record_t>
void count_digits(const record_t* from, int64_t begin, int64_t end, size_t digit, Places& count) {
  for (int64_t i = begin; i < end; ++i) ++count[digit_of(from[i], digit)];
}

template <typename record_t>
void place_records(const record_t* from, int64_t begin, int64_t end, size_t digit, Places place, record_t* to) {
  for (int64_t i = begin; i < end; ++i) to[place[digit_of(from[i], digit)]++] = from[i];
}

// Least significant digit first, 8 bits a pass, from `digit` on: 256 open cache lines fit the L1 cache. A digit that all keys share is
// passed over. The sorted records are left in `result`, which is `from` or `to`.
template <typename record_t>
void radix_sort(record_t* from, record_t* to, int64_t n, size_t digit, record_t* result) {
  constexpr size_t digits = sizeof(typename record_t::key_t);
  const int64_t pieces = sort_pieces(n), length = pieces > 1 ? kPiece : n;
  std::vector<Places> places(pieces > 1 ? static_cast<size_t>(pieces) : digits);  // of the pieces for a digit, or of all digits at once
  if (pieces == 1) {
    for (int64_t i = 0; i < n; ++i)
      for (size_t d = digit; d < digits; ++d) ++places[d][digit_of(from[i], d)];
  }
  for (; digit < digits; ++digit) {
    Places* const first_place = places.data() + (pieces > 1 ? 0 : digit);
    if (pieces > 1) {
      parallel_for(0, pieces, 1, [&](int64_t first, int64_t last) {
        for (int64_t p = first; p < last; ++p) {
          places[p].fill(0);
          count_digits(from, p * kPiece, std::min(n, (p + 1) * kPiece), digit, places[p]);
        }
      });
    }
    int64_t begin = 0, largest = 0;
    for (size_t d = 0; d < 256; ++d) {
      const int64_t before = begin;
      for (int64_t p = 0; p < pieces; ++p) begin += std::exchange(first_place[p][d], begin);
      largest = std::max(largest, begin - before);
    }
    if (largest == n) continue;
    parallel_for(0, pieces, 1, [&](int64_t first, int64_t last) {
      for (int64_t p = first; p < last; ++p) place_records(from, p * length, std::min(n, (p + 1) * length), digit, first_place[p], to);
    });
    std::swap(from, to);
  }
  if (from != result) std::copy_n(from, n, result);
}

// Segments of records, each sorted by key. Peak memory: two buffers of n records, and the ends of the segments.
template <typename record_t>
class SortedSegments {
 public:
  // segment_of(i): segment of element i, -1 to leave it out; record_of(i): its record
  template <typename segment_of_t, typename record_of_t>
  SortedSegments(int64_t n, int64_t segments, segment_of_t segment_of, record_of_t record_of)
      : ends_(static_cast<size_t>(segments) + 1, 0), records_(scratch<record_t>(n)), spare_(scratch<record_t>(n)) {
    if (segments > 2 || n <= kPiece) {
      partition(n, segments, 1, segment_of, record_of, records_.get());
      sort();
      return;
    }
    // few and long: sorted by the lowest digit on the way
    const auto place_of = [=](int64_t i) { return segment_of(i) * 256 + static_cast<int64_t>(digit_of(record_of(i), 0)); };
    partition(n, segments, 256, place_of, record_of, spare_.get());
    for (int64_t s = 0; s < segments; ++s) radix_sort(&spare_[begin(s)], &records_[begin(s)], size(s), 1, &records_[begin(s)]);
  }

  Span<record_t> operator[](int64_t s) const { return {records_.get() + begin(s), ends_[s + 1] - ends_[s]}; }
  int64_t begin(int64_t s) const { return ends_[static_cast<size_t>(s)]; }
  const record_t* records() const { return records_.get(); }
  // room for a record of each element, no longer needed for the sort
  record_t* spare() { return spare_.get(); }

 private:
  int64_t size(int64_t s) const { return begin(s + 1) - begin(s); }

  // writes the records to `to` by place; `width` places make a segment, negative ones are left out
  template <typename place_of_t, typename record_of_t>
  void partition(int64_t n, int64_t segments, int64_t width, place_of_t place_of, record_of_t record_of, record_t* to) {
    // a count for each piece and place: with many places one piece, or the counts would outgrow the records
    const int64_t places = segments * width, pieces = places <= 512 ? sort_pieces(n) : 1, length = pieces > 1 ? kPiece : n;
    std::vector<int64_t> next(static_cast<size_t>(pieces * places), 0);
    parallel_for(0, pieces, 1, [&](int64_t first, int64_t last) {
      const auto at = place_of;  // a local copy, as below: no store can change it
      for (int64_t p = first; p < last; ++p) {
        int64_t* const count = next.data() + p * places;
        const int64_t stop = std::min(n, (p + 1) * length);
        for (int64_t i = p * length; i < stop; ++i)
          if (const int64_t k = at(i); k >= 0) ++count[k];
      }
    });
    int64_t end = 0;
    for (int64_t k = 0; k < places; ++k) {
      for (int64_t p = 0; p < pieces; ++p) end += std::exchange(next[static_cast<size_t>(p * places + k)], end);
      ends_[static_cast<size_t>(k / width) + 1] = end;
    }
    parallel_for(0, pieces, 1, [&](int64_t first, int64_t last) {
      const auto at = place_of;
      const auto made = record_of;
      record_t* const out = to;
      for (int64_t p = first; p < last; ++p) {
        int64_t* const place = next.data() + p * places;
        const int64_t stop = std::min(n, (p + 1) * length);
        for (int64_t i = p * length; i < stop; ++i)
          if (const int64_t k = at(i); k >= 0) out[place[k]++] = made(i);
      }
    });
  }

  // long segments one after another, each by all threads; then the short ones, each by one
  void sort() {
    const int64_t segments = static_cast<int64_t>(ends_.size()) - 1;
    record_t *data = records_.get(), *other = spare_.get();
    for (int64_t s = 0; s < segments; ++s)
      if (size(s) > kPiece) radix_sort(data + begin(s), other + begin(s), size(s), 0, data + begin(s));
    const int64_t grain = std::max<int64_t>(1, segments * 4096 / std::max<int64_t>(ends_.back(), 1));
    parallel_for(0, segments, grain, [&](int64_t first, int64_t last) {
      for (int64_t s = first; s < last; ++s) {
        const int64_t n = size(s);
        if (n > kPiece) continue;
        if (n > 512) {
          radix_sort(data + begin(s), other + begin(s), n, 0, data + begin(s));
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
