// The product of two activations, element by element, as H3 gates with.
//
//   y = a b                                                                                 (1)
//   da = dy b,   db = dy a                                                                  (2)
//
//   a, b (t, d)  ->  y (t, d).  Rows of a and b may be strided views.
//
// Saved for backward: a and b. Traffic: 12 bytes an element forward, 20 backward.
#pragma once

#include "core/context.h"

namespace ssm {

Var multiply(const Ctx& ctx, const Var& a, const Var& b);

// y = a b; the backward is this too, twice.
struct Product {
  Tensor a, b, y;
};

namespace ref {
void multiply(const Product&, Threads&);
}  // namespace ref
namespace cpu {
void multiply(const Product&, Threads&);
}  // namespace cpu
namespace cuda {
void multiply(const Product&, Stream);
}  // namespace cuda

}  // namespace ssm
