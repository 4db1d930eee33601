// betti_matching, CPU.   Bars of two images by sublevel (superlevel) sets, matched where they are one feature of both in the image of both
//                        in min(f, g): Stucki et al. 2023 (arXiv 2211.15272), 2024 (arXiv 2407.04683).   betti_matching_loss: the loss of
//                        every pair of images and its gradients.   persistence_barcode: the bars of one image.
// Shapes: images [N, *S] with one to three spatial dimensions; rows are flat pixel indices inside an image; loss [N], gradients like
// images. Algorithm: values become integers in the order of the filtration; dimension 0 and the highest by union-find (betti_sweeps.h),
// dimension 1
//   of volumes by matrix reduction (betti_reduction.h). One image after another on a thread, images on all threads.
// Cost: pictures: a sort and a few sweeps, near-linear in the pixels. Volumes: as many, and the reduction, whose worst case is cubic.
// Numerics: values are compared, never computed: pairs are exact. Terms are added in float64 in the order of the rows, gradients of a pixel
//   too and rounded once; run_to_run, for any number of threads. NaN raises. A bar that dies at the last value of the filtration, +inf
//   (superlevel: -inf), is none: those cells never enter.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <atomic>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "../common/betti_images.h"
#include "../common/simd.h"
#include "../functors/betti_loss.h"
#include "betti_bars.h"

namespace nearlinear {
namespace {

using betti::Keys;
using betti::kNone;
using betti::Matching;
using torch::stable::Tensor;
using Images = BettiTensors;

// the images as integers in the order of the filtration
template <typename scalar_t>
class KeyMaker {
 public:
  KeyMaker(const Images& images) : images_(images), flip_(images.superlevel) {}

  // false if a value is NaN
  bool make(int64_t image, std::vector<uint32_t>& input, std::vector<uint32_t>& target) const {
    const size_t n = static_cast<size_t>(images_.pixels);
    input.resize(n), target.resize(images_.pair ? n : 0);
    const scalar_t* f = static_cast<const scalar_t*>(images_.input.const_data_ptr()) + image * images_.pixels;
    const scalar_t* g = static_cast<const scalar_t*>(images_.target.const_data_ptr()) + image * images_.pixels;
    if constexpr (std::is_same_v<scalar_t, double>) return rank(f, g, input, target);
    bool ok = true;
    for (size_t i = 0; i < n; ++i) input[i] = key(f[i], ok);
    for (size_t i = 0; i < target.size(); ++i) target[i] = key(g[i], ok);
    return ok;
  }

  // key of a value at which no cell enters; for ranks that of the largest, if it is infinite
  static bool infinite(scalar_t x, bool superlevel) {
    if constexpr (std::is_integral_v<scalar_t>) {
      return false;
    } else {
      const auto v = simd::to_op(x);
      constexpr auto most = std::numeric_limits<std::remove_const_t<decltype(v)>>::infinity();
      return v == (superlevel ? -most : most);
    }
  }

 private:
  uint32_t key(scalar_t x, bool& ok) const {
    if constexpr (std::is_integral_v<scalar_t>) {
      return flip_ ? 255u - x : x;
    } else if constexpr (!std::is_same_v<scalar_t, double>) {
      const uint32_t k = ordered_key(static_cast<float>(simd::to_op(x)));
      ok = ok && k != kNotANumber<uint32_t>;
      return flip_ ? ~k : k;
    }
    return 0;
  }

  // joint ranks of the values of both images
  bool rank(const scalar_t* f, const scalar_t* g, std::vector<uint32_t>& input, std::vector<uint32_t>& target) const {
    const size_t n = input.size(), all = n + target.size();
    std::vector<Indexed<uint64_t>> records(all), spare(all);
    bool ok = true;
    for (size_t i = 0; i < all; ++i) {
      const uint64_t k = ordered_key(static_cast<double>(i < n ? f[i] : g[i - n]));
      ok = ok && k != kNotANumber<uint64_t>;
      records[i] = {flip_ ? ~k : k, i};
    }
    radix_sort(records.data(), spare.data(), static_cast<int64_t>(all), 0, records.data());
    uint32_t r = 0;
    for (size_t i = 0; i < all; ++i) {
      r += i > 0 && records[i].key != records[i - 1].key;
      const size_t at = static_cast<size_t>(records[i].index);
      (at < n ? input[at] : target[at - n]) = r;
    }
    return ok;
  }

  const Images& images_;
  const bool flip_;
};

using Row2 = std::array<int64_t, 2>;
using Row4 = std::array<int64_t, 4>;

// rows of one image and dimension: pixels
struct Rows {
  std::vector<Row4> matched;
  std::vector<Row2> input, target;
};

// bars of dimension d as pixels; those that die where no cell enters are none, and their partners stay alone
template <int D, typename dead_t>
void to_rows(const Cubical<D>& grid, int d, Keys keys, const Matching& m, dead_t infinite, Rows& out) {
  const auto axes = [&](int type, int dim) {
    return dim == 0 ? 0u : dim == D ? grid.all_axes : dim == 1 ? grid.edge_axes(type) : grid.facet_axes(type);
  };
  const auto pixel = [&](const uint32_t* key, uint32_t cell, int dim) -> int64_t {
    const bool typed = dim > 0 && dim < D;
    return grid.critical_pixel(key, typed ? cell / D : cell, axes(typed ? static_cast<int>(cell % D) : 0, dim));
  };
  const auto row = [&](const uint32_t* key, betti::Bar bar) { return Row2{pixel(key, bar.birth, d), pixel(key, bar.death, d + 1)}; };
  std::vector<uint8_t> used(m.target.size(), 0);
  for (size_t i = 0; i < m.input.size(); ++i) {
    const Row2 mine = row(keys.input, m.input[i]);
    const uint32_t j = m.partner[i];
    const bool gone = infinite(0, mine[1]);
    if (j != kNone) {
      const Row2 other = row(keys.target, m.target[j]);
      if (!gone && !infinite(1, other[1])) {
        used[j] = 1;
        out.matched.push_back({mine[0], mine[1], other[0], other[1]});
        continue;
      }
    }
    if (!gone) out.input.push_back(mine);
  }
  for (size_t j = 0; j < m.target.size(); ++j) {
    if (used[j]) continue;
    const Row2 other = row(keys.target, m.target[j]);
    if (!infinite(1, other[1])) out.target.push_back(other);
  }
}

template <int D>
Cubical<D> grid_of(const Images& images) {
  // a signal is a picture with one row
  const auto& s = images.side;
  if constexpr (D == 3) {
    return Cubical<3>({s[0], s[1], s[2]});
  } else {
    return images.nd == 1 ? Cubical<2>({1, s[0]}) : Cubical<2>({s[0], s[1]});
  }
}

template <typename scalar_t>
void report_nan(const Images& images, int64_t image, const char* op) {
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

// calls use(image, keys, rows) for every image, images on all threads; rows: one for each homology dimension
template <typename scalar_t, int D, typename F>
void run_images(const Images& images, std::array<bool, 3> wanted, bool positive, const char* op, F&& use) {
  const Cubical<D> grid = grid_of<D>(images);
  const KeyMaker<scalar_t> maker(images);
  std::atomic<int64_t> bad{-1};
  parallel_for(0, images.count, 1, [&](int64_t first, int64_t last) {
    std::vector<uint32_t> f, g;
    for (int64_t k = first; k < last; ++k) {
      if (!maker.make(k, f, g)) {
        bad = k;
        return;
      }
      const Keys keys{f.data(), images.pair ? g.data() : nullptr};
      std::array<bool, D> dims{};
      for (size_t d = 0; d < D; ++d) dims[d] = wanted[d] && static_cast<int64_t>(d) < images.nd;
      betti::Matchings<D> matchings;
      betti::Instance<D>(grid, keys, dims, positive).run(matchings);
      std::array<Rows, D> rows;
      const scalar_t* values[2] = {static_cast<const scalar_t*>(images.input.const_data_ptr()) + k * images.pixels,
                                   static_cast<const scalar_t*>(images.target.const_data_ptr()) + k * images.pixels};
      const auto infinite = [&](int side, int64_t pixel) { return maker.infinite(values[side][pixel], images.superlevel); };
      for (int d = 0; d < D; ++d)
        if (dims[static_cast<size_t>(d)]) to_rows(grid, d, keys, matchings[static_cast<size_t>(d)], infinite, rows[static_cast<size_t>(d)]);
      use(k, rows.data(), keys);
    }
  });
  if (bad >= 0) report_nan<scalar_t>(images, bad, op);
}

template <typename F>
void for_images(const Images& images, std::array<bool, 3> wanted, bool positive, const char* op, F&& use) {
  dispatch_values(images.input.scalar_type(), op, [&](auto zero) {
    using scalar_t = decltype(zero);
    if (images.nd == 3) {
      run_images<scalar_t, 3>(images, wanted, positive, op, use);
    } else {
      run_images<scalar_t, 2>(images, wanted, positive, op, use);
    }
  });
}

// writes the rows of all images one after another, and where each image and dimension ends
template <typename row_t, typename pick_t>
Tensor gather_rows(const Tensor& like, const std::vector<Rows>& rows, pick_t pick, int64_t* offset, int64_t step) {
  int64_t total = 0;
  offset[0] = 0;
  for (size_t i = 0; i < rows.size(); ++i) offset[static_cast<int64_t>(i + 1) * step] = total += static_cast<int64_t>(pick(rows[i]).size());
  Tensor out = torch::stable::new_empty(like, {total, static_cast<int64_t>(std::tuple_size_v<row_t>)}, ScalarType::Long);
  row_t* to = static_cast<row_t*>(out.data_ptr());
  for (const Rows& r : rows) to = std::copy(pick(r).begin(), pick(r).end(), to);
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> betti_matching_cpu(const Tensor& input, const Tensor& target, std::vector<int64_t> dims,
                                                              bool superlevel, bool positive) {
  const char* op = "betti_matching";
  const Images images(input, &target, superlevel, op);
  const int64_t nd = images.nd;
  std::vector<Rows> rows(static_cast<size_t>(images.count * nd));
  for_images(images, wanted_dims(dims, nd, op), positive, op, [&](int64_t k, Rows* found, Keys) {
    for (int64_t d = 0; d < nd; ++d) rows[static_cast<size_t>(k * nd + d)] = std::move(found[d]);
  });
  Tensor offsets = torch::stable::new_empty(input, {images.count * nd + 1, 3}, ScalarType::Long);
  int64_t* offset = offsets.mutable_data_ptr<int64_t>();
  Tensor matched = gather_rows<Row4>(input, rows, [](const Rows& r) -> auto& { return r.matched; }, offset, 3);
  Tensor only_input = gather_rows<Row2>(input, rows, [](const Rows& r) -> auto& { return r.input; }, offset + 1, 3);
  Tensor only_target = gather_rows<Row2>(input, rows, [](const Rows& r) -> auto& { return r.target; }, offset + 2, 3);
  return {matched, only_input, only_target, offsets};
}

std::tuple<Tensor, Tensor> persistence_barcode_cpu(const Tensor& input, std::vector<int64_t> dims, bool superlevel) {
  const char* op = "persistence_barcode";
  const Images images(input, nullptr, superlevel, op);
  const int64_t nd = images.nd;
  std::vector<Rows> rows(static_cast<size_t>(images.count * nd));
  for_images(images, wanted_dims(dims, nd, op), false, op, [&](int64_t k, Rows* found, Keys) {
    for (int64_t d = 0; d < nd; ++d) rows[static_cast<size_t>(k * nd + d)] = std::move(found[d]);
  });
  Tensor offsets = torch::stable::new_empty(input, {images.count * nd + 1}, ScalarType::Long);
  Tensor pairs = gather_rows<Row2>(input, rows, [](const Rows& r) -> auto& { return r.input; }, offsets.mutable_data_ptr<int64_t>(), 1);
  return {pairs, offsets};
}

// values of one image, and where their gradients are added up
template <typename scalar_t>
struct Side {
  const scalar_t* value;
  double* slope;  // null: not wanted
  double operator[](int64_t pixel) const { return static_cast<double>(simd::to_op(value[pixel])); }
  void add(int64_t pixel, double x) const {
    if (slope != nullptr) slope[pixel] += x;
  }
};

template <typename scalar_t>
double loss_of_rows(const Rows& rows, const BettiTerms& terms, BettiWeights w, Side<scalar_t> f, Side<scalar_t> g) {
  double sum = 0;
  if (w.matched != 0) {
    for (const auto& [fb, fd, gb, gd] : rows.matched) {
      sum += terms.matched(f[fb], g[gb], f[fd], g[gd], w.matched);
      const double at_birth = terms.matched_slope(f[fb], g[gb], w.matched), at_death = terms.matched_slope(f[fd], g[gd], w.matched);
      f.add(fb, at_birth), f.add(fd, at_death), g.add(gb, -at_birth), g.add(gd, -at_death);
    }
  }
  const auto alone = [&](const std::vector<Row2>& bars, Side<scalar_t> s, double weight, bool all) {
    for (const auto& [birth, death] : bars) {
      const double b = s[birth], d = s[death];
      if (weight == 0 || !(all || terms.counts(b, d))) continue;
      sum += terms.unmatched(b, d, weight);
      s.add(birth, terms.birth_slope(b, d, weight)), s.add(death, terms.death_slope(b, d, weight));
    }
  };
  alone(rows.input, f, w.input, false);
  alone(rows.target, g, w.target, true);
  return sum;
}

// the essential bars, born at the first pixel of each filtration
template <typename scalar_t>
double loss_of_first(Keys keys, uint32_t pixels, double weight, Side<scalar_t> f, Side<scalar_t> g) {
  const int64_t a = std::min_element(keys.input, keys.input + pixels) - keys.input;
  const int64_t b = std::min_element(keys.target, keys.target + pixels) - keys.target;
  const double slope = BettiTerms::matched_slope(f[a], g[b], weight);
  f.add(a, slope), g.add(b, -slope);
  return 2 * weight * (f[a] - g[b]) * (f[a] - g[b]);
}

std::tuple<Tensor, Tensor, Tensor> betti_matching_loss_cpu(const Tensor& input, const Tensor& target, std::vector<double> weights,
                                                           bool superlevel, bool positive, double min_persistence, bool push,
                                                           bool essential, bool wants_input, bool wants_target) {
  const char* op = "betti_matching_loss";
  const Images images(input, &target, superlevel, op);
  const int64_t nd = images.nd, n = images.pixels;
  check(static_cast<int64_t>(weights.size()) == 3 * nd, op, "weights must have three values for each dimension, got ", weights.size());
  const BettiTerms terms{min_persistence, push, superlevel};
  std::array<BettiWeights, 3> w{};
  std::array<bool, 3> wanted{};
  for (size_t d = 0; d < static_cast<size_t>(nd); ++d) {
    w[d] = {weights[3 * d], weights[3 * d + 1], weights[3 * d + 2]};
    wanted[d] = w[d].any();
  }
  const ScalarType dtype = opmath_dtype(input.scalar_type());
  Tensor loss = torch::stable::new_empty(input, {images.count}, dtype);
  const auto gradient = [&](bool wants) {
    return wants ? torch::stable::new_empty(images.input, images.input.sizes(), input.scalar_type())
                 : torch::stable::new_empty(input, {0}, input.scalar_type());
  };
  Tensor d_input = gradient(wants_input), d_target = gradient(wants_target);
  dispatch_floating(input.scalar_type(), op, "input", [&](auto zero) {
    using scalar_t = decltype(zero);
    using stat_t = opmath_t<scalar_t>;
    stat_t* out = static_cast<stat_t*>(loss.data_ptr());
    for_images(images, wanted, positive, op, [&](int64_t k, const Rows* rows, Keys keys) {
      std::vector<double> slope(static_cast<size_t>(n * (wants_input + wants_target)), 0.0);
      const auto side = [&](const Tensor& t, double* s) {
        return Side<scalar_t>{static_cast<const scalar_t*>(t.const_data_ptr()) + k * n, s};
      };
      const Side<scalar_t> f = side(images.input, wants_input ? slope.data() : nullptr);
      const Side<scalar_t> g = side(images.target, wants_target ? slope.data() + (wants_input ? n : 0) : nullptr);
      double sum = 0;
      for (int64_t d = 0; d < nd; ++d)
        if (wanted[static_cast<size_t>(d)]) sum += loss_of_rows(rows[d], terms, w[static_cast<size_t>(d)], f, g);
      if (essential && w[0].matched != 0) sum += loss_of_first(keys, static_cast<uint32_t>(n), w[0].matched, f, g);
      out[k] = static_cast<stat_t>(sum);
      const auto write = [&](Tensor& to, const double* from) {
        if (from == nullptr) return;
        scalar_t* data = static_cast<scalar_t*>(to.data_ptr()) + k * n;
        for (int64_t i = 0; i < n; ++i) data[i] = static_cast<scalar_t>(static_cast<stat_t>(from[i]));
      };
      write(d_input, f.slope), write(d_target, g.slope);
    });
  });
  return {loss, d_input, d_target};
}

}  // namespace
}  // namespace nearlinear

STABLE_TORCH_LIBRARY_IMPL(nearlinear, CPU, m) {
  m.impl("betti_matching", TORCH_BOX(&nearlinear::betti_matching_cpu));
  m.impl("betti_matching_loss", TORCH_BOX(&nearlinear::betti_matching_loss_cpu));
  m.impl("persistence_barcode", TORCH_BOX(&nearlinear::persistence_barcode_cpu));
}
