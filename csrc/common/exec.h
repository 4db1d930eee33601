// the execution policy of csrc/algo: a CUDA stream under nvcc, OpenMP threads elsewhere (for tests), with memory from one arena.
#pragma once
#include <cstddef>
#include <new>
#ifdef __CUDACC__
#include <thrust/system/cuda/execution_policy.h>
#else
#include <thrust/system/omp/execution_policy.h>
#endif

namespace nearlinear {

// One block of bytes for arrays and for the temporaries of Thrust, so that nothing is allocated and peak memory is a formula. Work on a
// stream is in order, so what a finished call held may be given to the next before it has run.
class Arena {
 public:
  using value_type = char;
  Arena(char* data, size_t bytes) : begin_(data), next_(data), end_(data + bytes) {}

  char* allocate(std::ptrdiff_t bytes) {
    char* block = next_;
    const size_t rounded = (static_cast<size_t>(bytes) + 255) / 256 * 256;
    if (rounded > static_cast<size_t>(end_ - next_)) throw std::bad_alloc();
    next_ += rounded;
    if (next_ > top_) top_ = next_;
    return block;
  }
  void deallocate(char*, size_t) {}

  template <typename T>
  T* array(size_t n) {
    return reinterpret_cast<T*>(allocate(static_cast<std::ptrdiff_t>(n * sizeof(T))));
  }
  char* mark() const { return next_; }
  void release(char* mark) { next_ = mark; }
  size_t used() const { return static_cast<size_t>(top_ - begin_); }

 private:
  char *begin_, *next_, *end_, *top_ = nullptr;
};

#ifdef __CUDACC__
inline auto on(Arena& arena, cudaStream_t stream) { return thrust::cuda::par_nosync(arena).on(stream); }
#else
inline auto on(Arena& arena, void*) { return thrust::omp::par(arena); }
#endif

}  // namespace nearlinear
