// the column that a reduction works on.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "../common/simd.h"

namespace nearlinear::betti {

// Set of numbers above 0 that gives its largest first; a number put in twice is not in it. The first few lie in no order, the others in a
// heap: most columns are short.
class WorkingColumn {
 public:
  // the heap is someone else's, so that the rest stays in registers
  explicit WorkingColumn(std::vector<uint64_t>& heap) : heap_(heap) { heap_.clear(); }
  NL_INLINE void flip(uint64_t key) {
    make_room(1);
    put(key, true);
  }
  NL_INLINE void make_room(uint32_t keys) {
    if (few_ + keys <= kFew) return;
    for (uint32_t i = 0; i < few_; ++i) heap_.push_back(first_[i]), std::push_heap(heap_.begin(), heap_.end());
    few_ = 0;
  }
  // without a branch, after make_room
  NL_INLINE void put(uint64_t key, bool counts) { first_[few_] = key, few_ += counts; }
  // 0: empty
  NL_INLINE uint64_t pop() {
    while (few_ <= 2 && heap_.empty()) {
      if (few_ == 0) return 0;
      const uint64_t a = first_[0];
      if (--few_ == 0) return a;
      const uint64_t b = first_[1];
      first_[0] = std::min(a, b);
      if (a != b) return std::max(a, b);
      few_ = 0;
    }
    while (true) {
      uint64_t top = heap_.empty() ? 0 : heap_.front();
      for (uint32_t i = 0; i < few_; ++i) top = std::max(top, first_[i]);
      if (top == 0 || take(top)) return top;
    }
  }

 private:
  static constexpr uint32_t kFew = 32;
  // removes a number; whether it was in the set
  NL_INLINE bool take(uint64_t top) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < few_; ++i) {
      const uint64_t key = first_[i];
      first_[kept] = key, kept += key != top;
    }
    uint32_t times = few_ - kept;
    few_ = kept;
    for (; !heap_.empty() && heap_.front() == top; ++times) std::pop_heap(heap_.begin(), heap_.end()), heap_.pop_back();
    return (times & 1) != 0;
  }

  uint64_t first_[kFew + 1];
  uint32_t few_ = 0;
  std::vector<uint64_t>& heap_;
};

}  // namespace nearlinear::betti
