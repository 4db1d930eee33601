// betti_matching, CUDA.  Bars of two images by sublevel (superlevel) sets and their matching, as csrc/cpu/betti_matching.cpp.
//                        betti_matching_loss: the loss of every pair of images and its gradients. persistence_barcode: the bars of one
//                        image.
// Shapes: images [N, *S] with one or two spatial dimensions, any strides; rows are flat pixel indices inside an image; loss [N], gradients
//   like images; results on the same device. Volumes raise: their dimension 1 is a matrix reduction, which is the CPU's.
// Algorithm: csrc/algo/betti_matching.h by Thrust, all images in one set of launches: hooks of pixels and top cells, basins by pointer
//   jumping, one radix sort of the critical edges, one thread for each of the six trees of a pair, matching and gradients by look-up.
// Cost: stencils on each of three images, 8 passes of a sort with room for one edge per pixel, and the longest tree: its critical edges,
//   0.01 (binary) to 0.37 (noise) per pixel, one after another, with a few dependent loads each. Workspace 207 bytes for a pixel of a
//   pair, 69 for one of a barcode. The loss waits for nothing; the others read their sizes once. On the current stream, memory from torch.
// Numerics: values are compared, never computed: pairs are those of the CPU kernel, gpu_to_gpu. Terms and gradients are added in float64
//   in a fixed order and rounded once, run_to_run. NaN raises, but in the loss, which does not wait: there the loss of the image is NaN
//   and its gradient 0. Not yet run on a GPU; the tests run the same source on the host.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <limits>
#include <tuple>
#include <vector>

#include "../algo/betti_matching_launch.h"
#include "../common/betti_images.h"
#include "../common/stream.h"

namespace nearlinear {
namespace {

using torch::stable::Tensor;

// checked, on their device, in a dtype that holds every value
struct DeviceImages : BettiTensors {
  bool wide;

  DeviceImages(const Tensor& input_, const Tensor* target_, bool superlevel_, const char* op)
      : BettiTensors(input_, target_, superlevel_, op), wide(input.scalar_type() == ScalarType::Double) {
    dispatch_values(input.scalar_type(), op, [](auto) {});
    check(nd <= 2, op, "volumes run on the CPU: pass input.cpu()", pair ? " and target.cpu()" : "");
    check(target.is_cuda() && target.get_device_index() == input.get_device_index(), op, "input and target must be on the same device");
    const int64_t most = std::numeric_limits<uint32_t>::max() / 3, nodes = count * (pixels + 1);
    check(nodes <= most, op, "images must have at most ", most, " pixels in all, got ", nodes);
    if (wide) return;
    input = torch::stable::to(input, ScalarType::Float);
    target = pair ? torch::stable::to(target, ScalarType::Float) : input;
  }

  template <typename scalar_t>
  algo::BettiImages<scalar_t> view() const {
    return {input.const_data_ptr<scalar_t>(),
            target.const_data_ptr<scalar_t>(),
            pair,
            count,
            nd == 1 ? 1 : side[0],
            side[nd == 1 ? 0 : 1],
            superlevel};
  }
  Tensor workspace() const {
    const size_t bytes = algo::betti_workspace(pair, count, pixels);
    return torch::stable::new_empty(input, {static_cast<int64_t>(bytes)}, ScalarType::Byte);
  }
};

template <typename F>
void dispatch_wide(const DeviceImages& images, F&& f) {
  if (images.wide) return f(double{});
  f(float{});
}

void report_nan(const DeviceImages& images, uint64_t first, const char* op) {
  const uint64_t n = static_cast<uint64_t>(images.pixels), image = first / (2 * n);
  check(first == ~uint64_t{0}, op, first / n % 2 == 0 ? "input" : "target", " must not be NaN, got NaN in image ", image, " at flat index ",
        first % n);
}

// matched, input and target rows, and offsets; the one wait is for how many there are
std::vector<Tensor> bars_of(const DeviceImages& images, const std::vector<int64_t>& dims, bool positive, const char* op) {
  const std::array<bool, 3> wanted = wanted_dims(dims, images.nd, op);
  const torch::stable::accelerator::DeviceGuard guard(images.input.get_device_index());
  const cudaStream_t stream = current_stream(images.input, op);
  const int64_t last = images.count * images.nd;
  const auto table = [&](std::vector<int64_t> shape) { return torch::stable::new_empty(images.input, shape, ScalarType::Long); };
  Tensor offsets = images.pair ? table({last + 1, 3}) : table({last + 1});
  const Tensor memory = images.workspace();
  std::vector<Tensor> rows;
  dispatch_wide(images, [&](auto zero) {
    using scalar_t = decltype(zero);
    const algo::BettiOptions options{images.nd, wanted[0], wanted[1], positive};
    int64_t* offset = offsets.mutable_data_ptr<int64_t>();
    const algo::BettiWork work = algo::launch_betti_bars(images.view<scalar_t>(), options, offset, static_cast<char*>(memory.data_ptr()),
                                                         static_cast<size_t>(memory.numel()), stream);
    const int64_t columns = images.pair ? 3 : 1;
    int64_t size[3] = {};
    uint64_t nan = 0;
    cudaMemcpyAsync(size, offset + last * columns, sizeof(int64_t) * static_cast<size_t>(columns), cudaMemcpyDeviceToHost, stream);
    cudaMemcpyAsync(&nan, work.nan + images.count, sizeof(nan), cudaMemcpyDeviceToHost, stream);
    const cudaError_t error = cudaStreamSynchronize(stream);
    check(error == cudaSuccess, op, "CUDA failed: ", cudaGetErrorString(error));
    report_nan(images, nan, op);
    if (images.pair) {
      rows = {table({size[0], 4}), table({size[1], 2}), table({size[2], 2})};
    } else {
      rows = {table({0, 4}), table({size[0], 2}), table({0, 2})};
    }
    algo::launch_betti_rows(images.view<scalar_t>(), work, rows[0].mutable_data_ptr<int64_t>(), rows[1].mutable_data_ptr<int64_t>(),
                            rows[2].mutable_data_ptr<int64_t>(), stream);
    check_launch(op);
  });
  rows.push_back(offsets);
  return rows;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> betti_matching_cuda(const Tensor& input, const Tensor& target, std::vector<int64_t> dims,
                                                               bool superlevel, bool positive) {
  const char* op = "betti_matching";
  const std::vector<Tensor> rows = bars_of(DeviceImages(input, &target, superlevel, op), dims, positive, op);
  return {rows[0], rows[1], rows[2], rows[3]};
}

std::tuple<Tensor, Tensor> persistence_barcode_cuda(const Tensor& input, std::vector<int64_t> dims, bool superlevel) {
  const char* op = "persistence_barcode";
  const std::vector<Tensor> rows = bars_of(DeviceImages(input, nullptr, superlevel, op), dims, false, op);
  return {rows[1], rows[3]};
}

std::tuple<Tensor, Tensor, Tensor> betti_matching_loss_cuda(const Tensor& input, const Tensor& target, std::vector<double> weights,
                                                            bool superlevel, bool positive, double min_persistence, bool push,
                                                            bool essential, bool wants_input, bool wants_target) {
  const char* op = "betti_matching_loss";
  const ScalarType dtype = input.scalar_type();
  dispatch_floating(dtype, op, "input", [](auto) {});
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const DeviceImages images(input, &target, superlevel, op);
  const size_t nd = static_cast<size_t>(images.nd);
  check(weights.size() == 3 * nd, op, "weights must have three values for each dimension, got ", weights.size());
  weights.resize(6, 0.0);
  const BettiWeights low{weights[0], weights[1], weights[2]}, high{weights[3], weights[4], weights[5]};
  const algo::BettiLoss terms{low, high, {min_persistence, push, superlevel}, essential};
  Tensor loss = torch::stable::new_empty(images.input, {images.count}, images.input.scalar_type());
  const auto gradient = [&](bool wants) {
    return wants ? torch::stable::empty_like(images.input) : torch::stable::new_empty(images.input, {0}, images.input.scalar_type());
  };
  Tensor d_input = gradient(wants_input), d_target = gradient(wants_target);
  const Tensor memory = images.workspace();
  dispatch_wide(images, [&](auto zero) {
    using scalar_t = decltype(zero);
    const algo::BettiOptions options{images.nd, low.any(), high.any(), positive};
    algo::launch_betti_loss(images.view<scalar_t>(), options, terms, loss.mutable_data_ptr<scalar_t>(),
                            wants_input ? d_input.mutable_data_ptr<scalar_t>() : nullptr,
                            wants_target ? d_target.mutable_data_ptr<scalar_t>() : nullptr, static_cast<char*>(memory.data_ptr()),
                            static_cast<size_t>(memory.numel()), current_stream(images.input, op));
    check_launch(op);
  });
  return {loss, torch::stable::to(d_input, dtype), torch::stable::to(d_target, dtype)};
}

}  // namespace
}  // namespace nearlinear

STABLE_TORCH_LIBRARY_IMPL(nearlinear, CUDA, m) {
  m.impl("betti_matching", TORCH_BOX(&nearlinear::betti_matching_cuda));
  m.impl("betti_matching_loss", TORCH_BOX(&nearlinear::betti_matching_loss_cuda));
  m.impl("persistence_barcode", TORCH_BOX(&nearlinear::persistence_barcode_cuda));
}
