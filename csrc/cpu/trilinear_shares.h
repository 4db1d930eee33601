// attention over pairs of keys, backward: gradients of keys, one set for each share of the queries, and their sums in a fixed order.
#pragma once
#include <torch/csrc/stable/ops.h>

#include "trilinear_tile.h"

namespace nearlinear {

// whose gradients are wanted; axes as the problem has them
struct Wanted {
  bool query;
  std::array<bool, 2> key, value, bias;
  bool slopes() const { return query || key[0] || key[1] || bias[0] || bias[1]; }
};

// gradients of the keys of one axis in a range
template <typename T>
struct KeyGradients {
  KeyGradients(Range range, int64_t key_channels, int64_t value_channels)
      : range(range),
        channels{key_channels, value_channels, 1},
        sums{lines<T>(range.size() * key_channels), lines<T>(range.size() * value_channels), lines<T>(range.size())} {}
  T* key(int64_t j) const { return row(0, j); }
  T* value(int64_t j) const { return row(1, j); }
  T* bias(int64_t j) const { return row(2, j); }
  T* row(int kind, int64_t j) const { return sums[kind].get() + (j - range.first) * channels[kind]; }

  Range range;
  std::array<int64_t, 3> channels;
  std::array<Lines<T>, 3> sums;
};

// The tiles of a group of heads are cut into `parts` shares of tiles one after another, whose number depends on shapes alone: about 32 in
// all, fewer if each would own much memory. A share owns gradients of the keys that its queries reach.
template <typename T>
class Shares {
 public:
  using Pair = std::array<KeyGradients<T>, 2>;

  explicit Shares(const TrilinearProblem<T>& problem) : problem_(problem) {
    const int64_t channels = problem.query.channels + problem.value_channels() + 1, groups = problem.batch * problem.groups();
    const int64_t bytes = (problem.axes[0].key.count + problem.axes[1].key.count) * channels * static_cast<int64_t>(sizeof(T));
    const int64_t fitting = std::clamp<int64_t>((int64_t{16} << 20) / std::max<int64_t>(bytes, 1), 8, 32);
    parts_ = std::clamp<int64_t>(fitting / std::max<int64_t>(groups, 1), 1, std::max<int64_t>(problem.tiles(), 1));
    made_.resize(problem.tiles() > 0 ? groups * parts_ : 0);
  }
  int64_t count() const { return static_cast<int64_t>(made_.size()); }
  // tasks of a share
  Range tasks(int64_t share) const {
    const int64_t first = share / parts_ * problem_.tiles(), part = share % parts_;
    return {first + problem_.tiles() * part / parts_, first + problem_.tiles() * (part + 1) / parts_};
  }
  Pair* make(int64_t share) {
    const Range tiles = tasks(share);
    const int64_t offset = share / parts_ * problem_.tiles();
    const int64_t first = problem_.place(problem_.tile_begin(tiles.first - offset));
    const int64_t last = problem_.place(problem_.tile_begin(tiles.last - offset) - 1);
    auto gradients = [&](int axis) {
      const Axis<T>& x = problem_.axes[axis];
      const Range reach{x.window.keys(first, x.key.count).first, x.window.keys(last, x.key.count).last};
      return KeyGradients<T>(reach, x.key.channels, x.value.channels);
    };
    return &made_[share].emplace(Pair{gradients(0), gradients(1)});
  }

  // sums over the shares: kind 0 keys, 1 values, 2 biases
  void store(int axis, int kind, const Tensor& out, const char* op) const {
    const TensorRows<T> rows(out, op, "gradient");
    torch::stable::parallel_for(0, problem_.batch * problem_.groups(), 1, [&](int64_t begin, int64_t end) {
      std::vector<double> sum(rows.channels);
      std::vector<T> row(rows.channels);
      for (int64_t bg = begin; bg < end; ++bg)
        for (int64_t j = 0; j < rows.count; ++j) {
          std::fill(sum.begin(), sum.end(), 0.0);
          for (int64_t share = bg * parts_; share < (bg + 1) * parts_ && share < count(); ++share) {
            const KeyGradients<T>& part = (*made_[share])[axis];
            if (j < part.range.first || j >= part.range.last) continue;
            for (int64_t c = 0; c < rows.channels; ++c) sum[c] += part.row(kind, j)[c];
          }
          for (int64_t c = 0; c < rows.channels; ++c) row[c] = static_cast<T>(sum[c]);
          rows.store(bg / problem_.groups(), bg % problem_.groups(), j, row.data());
        }
    });
  }

 private:
  const TrilinearProblem<T>& problem_;
  int64_t parts_;
  std::vector<std::optional<Pair>> made_;
};

}  // namespace nearlinear
