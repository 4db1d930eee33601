// terms of the Betti matching loss, and their gradients on the filtration's values.
//
// With values b, d of birth and death of a bar (one image), and b', d' of its partner:
//   matched     w0 2 [(b - b')^2 + (d - d')^2]          d/db = 4 w0 (b - b')
//   unmatched   w  (b - d)^2                            d/db = 2 w (b - d) = -d/dd
//   pushed      w  2 [(b - over)^2 + (d - under)^2]     the bar is moved across the diagonal: its birth to the value that enters last, its
//                                                       death to the one that enters first
// Squares of differences do not change when both values are negated, so superlevel filtrations need no branch but for over and under.
#pragma once
#include "ordered_key.h"

namespace nearlinear {

struct BettiWeights {
  double matched, input, target;
  bool any() const { return matched != 0 || input != 0 || target != 0; }
};

struct BettiTerms {
  double min_persistence;
  bool push, superlevel;
  NL_HD double over() const { return superlevel ? 0.0 : 1.0; }   // birth value of a pushed bar
  NL_HD double under() const { return superlevel ? 1.0 : 0.0; }  // death value

  // equal infinities differ by nothing
  NL_HD static double apart(double x, double y) { return x == y ? 0.0 : x - y; }
  NL_HD static double matched(double b, double b2, double d, double d2, double w) {
    return 2 * w * (apart(b, b2) * apart(b, b2) + apart(d, d2) * apart(d, d2));
  }
  NL_HD static double matched_slope(double x, double y, double w) { return 4 * w * apart(x, y); }

  NL_HD bool counts(double b, double d) const { return (b > d ? b - d : d - b) > min_persistence; }
  NL_HD double unmatched(double b, double d, double w) const {
    return push ? 2 * w * ((b - over()) * (b - over()) + (d - under()) * (d - under())) : w * (b - d) * (b - d);
  }
  NL_HD double birth_slope(double b, double d, double w) const { return push ? 4 * w * (b - over()) : 2 * w * (b - d); }
  NL_HD double death_slope(double b, double d, double w) const { return push ? 4 * w * (d - under()) : 2 * w * (d - b); }
};

}  // namespace nearlinear
