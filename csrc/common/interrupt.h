// long kernels: Ctrl-C ends them, and how far they are can be read from another thread.
#pragma once
#include <Python.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

namespace nearlinear {

// units of work of all calls that run now: done, and altogether
struct Progress {
  std::atomic<int64_t> done{0}, total{0};
};
inline Progress progress;

// Work of one call, made by the thread that called. The interpreter lock is not held meanwhile: that thread takes it for a moment.
class Work {
 public:
  explicit Work(int64_t units) : units_(units) { progress.total += units; }
  ~Work() { progress.done -= done_, progress.total -= units_; }
  Work(const Work&) = delete;
  Work& operator=(const Work&) = delete;

  void add(int64_t units) { done_ += units, progress.done += units; }
  bool stopped() const { return stopped_.load(std::memory_order_relaxed); }
  // From any thread, about once for 2^12 columns or 2^16 cells: whether to leave. Nothing may throw here: the caller of the kernel does.
  bool poll() {
    if (std::this_thread::get_id() == caller_) ask();
    return stopped();
  }

 private:
  void ask() {
    const auto now = std::chrono::steady_clock::now();
    if (now < next_ || !Py_IsInitialized()) return;
    next_ = now + std::chrono::milliseconds(50);
    const PyGILState_STATE state = PyGILState_Ensure();
    if (PyErr_CheckSignals() != 0) {
      PyErr_Clear();
      stopped_ = true;
    }
    PyGILState_Release(state);
  }

  const std::thread::id caller_ = std::this_thread::get_id();
  const int64_t units_;
  std::atomic<int64_t> done_{0};
  std::atomic<bool> stopped_{false};
  std::chrono::steady_clock::time_point next_{};
};

}  // namespace nearlinear
