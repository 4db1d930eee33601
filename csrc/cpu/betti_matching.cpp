// betti_matching, CPU.   Bars of two images by sublevel (superlevel) sets, matched where they are one feature of both in the image of both
//                        in min(f, g): Stucki et al. 2023 (arXiv 2211.15272), 2024 (arXiv 2407.04683).   betti_matching_loss: the loss of
//                        every pair of images and its gradients.   persistence_barcode: the bars of one image.
// Shapes: images [N, *S] with one to three spatial dimensions; rows are flat pixel indices inside an image; loss [N], gradients like
//   images.
// Algorithm: values become integers in the order of the filtration (betti_keys.h). Pictures by basins and trees (betti_picture.h). Volumes:
//   dimensions 0 and 2 by basins and union-find, dimension 1 by matrix reduction (betti_volume.h). One image after another on a thread,
//   images on all threads, fewer volumes than threads in parts.
// Cost: pictures: near-linear in the pixels, 27 to 76 bytes each. Volumes: sorts and sweeps, and the reduction, whose worst case is cubic;
//   about 260 bytes a voxel. Long runs end on Ctrl-C.
// Numerics: values are compared, never computed: pairs are exact. Terms are added in float64 in the order of the rows, gradients of a pixel
//   too and rounded once; run_to_run, for any number of threads. NaN raises. A bar that dies at the last value of the filtration, +inf
//   (superlevel: -inf), is none: those cells never enter.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <tuple>
#include <vector>

#include "../functors/betti_loss.h"
#include "betti_keys.h"
#include "betti_picture.h"
#include "betti_rows.h"
#include "betti_volume.h"

namespace nearlinear {
namespace {

using Images = BettiTensors;
using betti::KeyMaker;
using betti::Keys;
using betti::Row2;
using betti::Row4;
using betti::Rows;
using torch::stable::Tensor;

template <int D>
Cubical<D> grid_of(const Images& images) {
  // a signal is a picture with one row, and so is a picture with one column
  const auto& s = images.side;
  if constexpr (D == 3) {
    return Cubical<3>({s[0], s[1], s[2]});
  } else {
    return images.nd == 1 || s[1] == 1 ? Cubical<2>({1, s[0]}) : Cubical<2>({s[0], s[1]});
  }
}

// finds the bars of one image after another, each of so many units of work
template <int D>
class Solver;

template <>
class Solver<2> {
 public:
  Solver(const Cubical<2>& grid, std::array<bool, 2> wanted, bool positive) : units_(grid.pixels), picture_(grid, wanted, positive) {}
  static int64_t units(const Cubical<2>& grid, bool, std::array<bool, 2>) { return grid.pixels; }
  void run(Keys keys, betti::Matchings<2>& out, Work& work) {
    picture_.run(keys, out);
    work.add(units_);
  }

 private:
  const int64_t units_;
  betti::Picture picture_;
};

template <>
class Solver<3> {
 public:
  Solver(const Cubical<3>& grid, std::array<bool, 3> wanted, bool positive) : grid_(grid), wanted_(wanted), positive_(positive) {}
  static int64_t units(const Cubical<3>& grid, bool pair, std::array<bool, 3> wanted) { return betti::Volume::units(grid, pair, wanted); }
  void run(Keys keys, betti::Matchings<3>& out, Work& work) const {
    out = {};
    betti::Volume(grid_, keys, wanted_, positive_, work).run(out);
  }

 private:
  const Cubical<3> grid_;
  const std::array<bool, 3> wanted_;
  const bool positive_;
};

// calls use(image, rows, keys) for every image, images on all threads; rows: one for each homology dimension. new_use: makes one for each
// worker, which may keep memory
template <typename scalar_t, int D, typename F>
void run_images(const Images& images, std::array<bool, 3> wanted, bool positive, const char* op, F&& new_use) {
  const Cubical<D> grid = grid_of<D>(images);
  std::array<bool, D> dims{};
  for (size_t d = 0; d < D; ++d) dims[d] = wanted[d] && static_cast<int64_t>(d) < images.nd;
  Work work(images.count * Solver<D>::units(grid, images.pair, dims));
  std::atomic<int64_t> bad{-1};
  // fewer volumes than threads: one after another, each on several threads
  const bool split = D == 3 && images.count < torch::stable::get_num_threads();
  const int64_t grain = split ? std::max<int64_t>(images.count, 1) : 1;
  parallel_for(0, images.count, grain, [&](int64_t first, int64_t last) {
    Solver<D> solver(grid, dims, positive);
    betti::Matchings<D> matchings;
    std::array<Rows, D> rows;
    KeyMaker<scalar_t> maker(images);
    auto use = new_use();
    for (int64_t k = first; k < last && !work.poll(); ++k) {
      if (!maker.make(k)) {
        bad = k;
        return;
      }
      const Keys keys = maker.keys();
      solver.run(keys, matchings, work);
      if (work.stopped()) return;
      for (size_t d = 0; d < D; ++d)
        if (dims[d]) betti::to_rows(grid, static_cast<int>(d), keys, matchings[d], maker.infinite, rows[d]);
      use(k, rows.data(), keys);
    }
  });
  check(!work.stopped(), op, "interrupted");
  if (bad >= 0) betti::report_nan<scalar_t>(images, bad, op);
}

template <typename scalar_t, typename F>
void for_images_of(const Images& images, std::array<bool, 3> wanted, bool positive, const char* op, F&& new_use) {
  if (images.nd == 3) {
    run_images<scalar_t, 3>(images, wanted, positive, op, new_use);
  } else {
    run_images<scalar_t, 2>(images, wanted, positive, op, new_use);
  }
}

// rows of every image and dimension
std::vector<Rows> rows_of(const Images& images, std::array<bool, 3> wanted, bool positive, const char* op) {
  std::vector<Rows> rows(static_cast<size_t>(images.count * images.nd));
  dispatch_values(images.input.scalar_type(), op, [&](auto zero) {
    for_images_of<decltype(zero)>(images, wanted, positive, op, [&] {
      return [&](int64_t k, Rows* found, Keys) {
        for (int64_t d = 0; d < images.nd; ++d) rows[static_cast<size_t>(k * images.nd + d)] = std::exchange(found[d], Rows{});
      };
    });
  });
  return rows;
}

// writes the rows of all images one after another, and where each image and dimension ends
template <typename row_t, typename pick_t>
Tensor gather_rows(const Tensor& like, const std::vector<Rows>& rows, pick_t pick, int64_t* offset, int64_t step) {
  int64_t total = 0;
  offset[0] = 0;
  for (size_t i = 0; i < rows.size(); ++i) offset[static_cast<int64_t>(i + 1) * step] = total += static_cast<int64_t>(pick(rows[i]).size());
  Tensor out = torch::stable::new_empty(like, {total, static_cast<int64_t>(std::tuple_size_v<row_t>)}, ScalarType::Long);
  int64_t* to = static_cast<int64_t*>(out.data_ptr());
  for (const Rows& r : rows)
    for (const row_t& row : pick(r)) to = std::copy(row.begin(), row.end(), to);
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> betti_matching_cpu(const Tensor& input, const Tensor& target, std::vector<int64_t> dims,
                                                              bool superlevel, bool positive) {
  const char* op = "betti_matching";
  const Images images(input, &target, superlevel, op);
  const int64_t nd = images.nd;
  const std::vector<Rows> rows = rows_of(images, wanted_dims(dims, nd, op), positive, op);
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
  const std::vector<Rows> rows = rows_of(images, wanted_dims(dims, nd, op), false, op);
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

// writes the gradients of an image, and leaves zeros for the next one
template <typename scalar_t>
NL_CLONES void take_slopes(double* __restrict slope, int64_t n, scalar_t* __restrict out) {
  for (int64_t i = 0; i < n; ++i) {
    simd::from_op(static_cast<opmath_t<scalar_t>>(slope[i]), out + i);
    slope[i] = 0;
  }
}

// the essential bars, born at the first pixel of each filtration
template <typename scalar_t>
double loss_of_first(Keys keys, uint32_t pixels, double weight, Side<scalar_t> f, Side<scalar_t> g) {
  const int64_t a = std::min_element(keys.input, keys.input + pixels) - keys.input;
  const int64_t b = std::min_element(keys.target, keys.target + pixels) - keys.target;
  const double slope = BettiTerms::matched_slope(f[a], g[b], weight);
  f.add(a, slope), g.add(b, -slope);
  const double apart = BettiTerms::apart(f[a], g[b]);
  return 2 * weight * apart * apart;
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
    const auto use = [&](int64_t k, const Rows* rows, Keys keys, double* slope) {
      const auto side = [&](const Tensor& t, bool wants, double* s) {
        return Side<scalar_t>{static_cast<const scalar_t*>(t.const_data_ptr()) + k * n, wants ? s : nullptr};
      };
      const Side<scalar_t> f = side(images.input, wants_input, slope);
      const Side<scalar_t> g = side(images.target, wants_target, slope + (wants_input ? n : 0));
      double sum = 0;
      for (int64_t d = 0; d < nd; ++d)
        if (wanted[static_cast<size_t>(d)]) sum += loss_of_rows(rows[d], terms, w[static_cast<size_t>(d)], f, g);
      if (essential && w[0].matched != 0) sum += loss_of_first(keys, static_cast<uint32_t>(n), w[0].matched, f, g);
      out[k] = static_cast<stat_t>(sum);
      if (wants_input) take_slopes(f.slope, n, static_cast<scalar_t*>(d_input.data_ptr()) + k * n);
      if (wants_target) take_slopes(g.slope, n, static_cast<scalar_t*>(d_target.data_ptr()) + k * n);
    };
    for_images_of<scalar_t>(images, wanted, positive, op, [&] {
      return [&, slopes = std::vector<double>(static_cast<size_t>(n * (wants_input + wants_target)))](
                 int64_t k, const Rows* rows, Keys keys) mutable { use(k, rows, keys, slopes.data()); };
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
