// argument errors of the ops: one function, one text format, no file or line in what a user reads.
#pragma once
#include <sstream>
#include <stdexcept>

namespace nearlinear {

// throws RuntimeError "<op>: <text>". Never call it inside parallel_for: the message would be lost there.
template <typename... Text>
void check(bool ok, const char* op, const Text&... text) {
  if (ok) return;
  std::ostringstream message;
  message << op << ": ";
  (message << ... << text);
  throw std::runtime_error(message.str());
}

}  // namespace nearlinear
