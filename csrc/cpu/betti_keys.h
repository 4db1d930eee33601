// images of a Betti matching op as integers in the order of the filtration.
//
// Order-preserving keys of 32 bits, complemented for superlevel sets. Keys of 8-bit values are the values: sorts skip the digits that all
// keys share. float64 has the keys of float32 if all values are exact in it, else the joint ranks of both images: a sort by the upper half
// of the keys, then one by the lower half among those that share it.
#pragma once
#include <limits>

#include "../common/betti_images.h"
#include "../common/simd.h"
#include "../functors/cubical.h"
#include "betti_bars.h"
#include "betti_cells.h"
#include "sorted_segments.h"

namespace nearlinear::betti {

using torch::stable::Tensor;

// false if a value is NaN
template <typename scalar_t>
NL_CLONES bool make_keys(const scalar_t* __restrict in, int64_t n, uint32_t flip, uint32_t* __restrict out) {
  uint32_t bad = 0;
  for (int64_t i = 0; i < n; ++i) {
    if constexpr (std::is_integral_v<scalar_t>) {
      out[i] = in[i] ^ (flip & 255u);
    } else {
      const uint32_t k = ordered_key(static_cast<float>(simd::to_op(in[i])));
      bad |= k == kNotANumber<uint32_t>;
      out[i] = k ^ flip;
    }
  }
  return bad == 0;
}

// whether all values are exact in float32
template <typename scalar_t>
NL_CLONES bool narrow(const scalar_t* in, int64_t n) {
  uint32_t other = 0;
  for (int64_t i = 0; i < n; ++i) other |= static_cast<scalar_t>(static_cast<float>(in[i])) != in[i];
  return other == 0;
}

// the images as integers in the order of the filtration
template <typename scalar_t>
class KeyMaker {
 public:
  std::vector<uint32_t> input, target;
  uint32_t infinite = kNone;  // the key at which no cell enters

  explicit KeyMaker(const BettiTensors& images) : images_(images), flip_(images.superlevel ? kNone : 0) {
    input.resize(static_cast<size_t>(images.pixels)), target.resize(images.pair ? input.size() : 0);
    if constexpr (!std::is_integral_v<scalar_t>) infinite = ordered_key(std::numeric_limits<float>::infinity());  // -inf if flipped
  }

  // false if a value is NaN
  bool make(int64_t image) {
    const scalar_t* f = static_cast<const scalar_t*>(images_.input.const_data_ptr()) + image * images_.pixels;
    const scalar_t* g = static_cast<const scalar_t*>(images_.target.const_data_ptr()) + image * images_.pixels;
    const int64_t n = static_cast<int64_t>(input.size()), pair = static_cast<int64_t>(target.size());
    if constexpr (std::is_same_v<scalar_t, double>) {
      if (!narrow(f, n) || !narrow(g, pair)) return rank(f, g);
      infinite = ordered_key(std::numeric_limits<float>::infinity());
    }
    return make_keys(f, n, flip_, input.data()) && make_keys(g, pair, flip_, target.data());
  }
  Keys keys() const { return {input.data(), images_.pair ? target.data() : nullptr}; }

 private:
  // joint ranks of the values of both images
  bool rank(const scalar_t* f, const scalar_t* g) {
    const uint32_t n = static_cast<uint32_t>(input.size()), all = n + static_cast<uint32_t>(target.size());
    uint64_t* key = wide_.room(all);
    Indexed<uint32_t>*record = records_.room(all), *spare = spare_.room(all);
    const uint64_t flip = images_.superlevel ? ~uint64_t{0} : 0;
    bool ok = true;
    for (uint32_t i = 0; i < all; ++i) {
      const uint64_t k = ordered_key(static_cast<double>(i < n ? f[i] : g[i - n]));
      ok = ok && k != kNotANumber<uint64_t>;
      key[i] = k ^ flip, record[i] = {value_of(key[i]), i};
    }
    record = sort_records(record, spare, all);
    uint32_t r = 0;
    uint64_t last = key[record[0].index];
    for (uint32_t begin = 0, end; begin < all; begin = end) {
      for (end = begin + 1; end < all && record[end].key == record[begin].key;) ++end;
      sort_by_key(record + begin, record + end, key);
      for (uint32_t i = begin; i < end; ++i) {
        const uint32_t at = record[i].index;
        r += key[at] != last, last = key[at];
        (at < n ? input[at] : target[at - n]) = r;
      }
    }
    infinite = last == (ordered_key(images_.superlevel ? -most : most) ^ flip) ? r : kNone;
    return ok;
  }
  static void sort_by_key(Indexed<uint32_t>* begin, Indexed<uint32_t>* end, const uint64_t* key) {
    const auto other = [&](const Indexed<uint32_t>& r) { return key[r.index] != key[begin->index]; };
    if (std::none_of(begin + 1, end, other)) return;
    std::sort(begin, end, [&](auto a, auto b) { return key[a.index] < key[b.index]; });
  }

  static constexpr double most = std::numeric_limits<double>::infinity();
  Buffer<uint64_t> wide_;
  Buffer<Indexed<uint32_t>> records_, spare_;
  const BettiTensors& images_;
  const uint32_t flip_;
};

template <typename scalar_t>
void report_nan(const BettiTensors& images, int64_t image, const char* op) {
  if constexpr (!std::is_integral_v<scalar_t>)
    for (int side = 0; side < 2; ++side) {
      const Tensor& t = side == 0 ? images.input : images.target;
      const scalar_t* x = static_cast<const scalar_t*>(t.const_data_ptr()) + image * images.pixels;
      for (int64_t i = 0; i < images.pixels; ++i) {
        const auto v = simd::to_op(x[i]);
        check(v == v, op, side == 0 ? "input" : "target", " must not be NaN, got NaN in image ", image, " at flat index ", i);
      }
    }
}

}  // namespace nearlinear::betti
