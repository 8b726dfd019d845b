// Rotary positions (Su et al. 2021, RoFormer): the first `dim` channels of each head are turned in pairs by angles that
// grow with the token's position P in its sequence, so that a product of two heads depends on their distance alone:
//
//   angle_i = P base^(-2i / dim),   i = 0 .. dim / 2 - 1                                              (1)
//   (y_a, y_b) = (x_a cos - x_b sin, x_b cos + x_a sin)                                                (2)
//   a, b = i, i + dim / 2, or interleaved 2i, 2i + 1; the other channels pass                          (3)
//
//   x (t, heads p), may be columns of a wider matrix  ->  y (t, heads p)
//
// `before`: tokens of each sequence that came before its first row here. f32 (f64 on ref, bf16 and f16 too on cuda). Nothing is saved: the
// gradient is turned back by the same angles. Traffic: 8 bytes an element either way.
#pragma once

#include <vector>

#include "core/context.h"
#include "core/sequences.h"

namespace ssm {

struct Rotation {
  int64_t dim = 0;  // even, at most the width of a head; 0: none
  double base = 10000;
  bool interleaved = false;
};

Var rope(const Ctx& ctx, const Var& x, int64_t heads, const Rotation& rotation, const Seqs& seqs,
         const std::vector<int64_t>& before);

struct RopeTurn {
  Tensor x;
  int64_t heads;
  Rotation rotation;
  const Seqs& seqs;
  const std::vector<int64_t>& before;
  bool back;  // by the negative angles: the backward
  Tensor y;
};

namespace ref {
void rope_turn(const RopeTurn&, Threads&);
}
namespace cpu {
void rope_turn(const RopeTurn&, Threads&);
}
namespace cuda {
void rope_turn(const RopeTurn&, Stream);
}

}  // namespace ssm
