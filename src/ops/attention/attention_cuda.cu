// attention on a GPU: which kernels a call takes, the tables they read, and the rows that join a state.
#include "core/cuda_kernel.cuh"
#include "ops/attention/attention.h"
#include "ops/attention/attention_cuda.cuh"
#include "ops/sequence_of.cuh"

#include <algorithm>

namespace ssm::cuda {
namespace {

constexpr int kThreads = 256;

// (1), (4): a thread moves a channel of k or v of one row.
template <class T>
__global__ void __launch_bounds__(kThreads)
    append_kernel(Rows<const T> k, Rows<const T> v, KeyRows<T> kv, AttentionPlaces places, int64_t sequences) {
  const int64_t width = places.groups * places.p, at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x,
                row = at / (2 * width), c = at % (2 * width);
  if (row >= places.tokens) return;
  const int64_t s = sequence_of(places.offsets, sequences, row),
                token = places.keys_before(s) + row - places.offsets[s];
  places.key(kv, s, token)[c] = c < width ? k[row][c] : v[row][c - width];
}

// Whether all rows begin on a boundary of `bytes`.
bool rows_on(const Tensor& tensor, int64_t bytes) {
  bool all = reinterpret_cast<uintptr_t>(tensor.raw()) % static_cast<uintptr_t>(bytes) == 0;
  for (int dim = 0; dim + 1 < tensor.rank(); ++dim)
    all = all && tensor.stride(dim) * bytes_of(tensor.dtype()) % bytes == 0;
  return all;
}

bool few_rows(const AttentionForward& args) {
  constexpr int64_t kFew = 4;  // beyond, a tile of rows reads the keys fewer times
  const int64_t bytes = args.sizes.p * bytes_of(args.q.dtype());
  return args.seqs.longest <= kFew && bytes % 16 == 0 && bytes <= 512 && rows_on(args.q, 16) && rows_on(args.k, 16) &&
         rows_on(args.v, 16);
}

bool tiles_take(const AttentionForward& args) {
  return args.q.dtype() != DType::f32 && args.sizes.p % 8 == 0 && args.sizes.p <= 256 && rows_on(args.q, 16) &&
         rows_on(args.k, 16) && rows_on(args.v, 16) && rows_on(args.out, 4);
}

bool warpgroups_take(const AttentionSizes& sizes, const Device& device) {
  return sizes.p <= kMostWarpgroupWidth && compute_capability(device) == 90;
}

}  // namespace

AttentionTables::AttentionTables(const AttentionSizes& sizes, const Seqs& seqs, int64_t tokens, const Tensor& k) {
  const Device& device = k.device();
  const auto& tables = seqs.tables(device);
  const bool carried = k.rank() == 3;
  if (carried) before = Tensor::of(sizes.before).on(device);
  const auto flat = [](double slope) { return slope == 0; };
  if (!std::all_of(sizes.slopes.begin(), sizes.slopes.end(), flat))
    slopes = Tensor::of(std::vector<float>(sizes.slopes.begin(), sizes.slopes.end())).on(device);
  places = {.offsets = elements<const int64_t>(tables.offsets),
            .slots = carried ? elements<const int64_t>(tables.slots) : nullptr,
            .before = elements<const int64_t>(before),
            .slopes = elements<const float>(slopes),
            .tokens = tokens,
            .heads = sizes.heads,
            .groups = sizes.groups,
            .p = sizes.p,
            .scale = static_cast<float>(sizes.scale)};
}

Tensor key_pieces(const AttentionSizes& sizes, const Seqs& seqs, int64_t length, const Device& device) {
  const auto none = [](int64_t n) { return n == 0; };
  if (std::all_of(sizes.before.begin(), sizes.before.end(), none)) return seqs.pieces(device, length);
  std::vector<int64_t> rows;
  for (int64_t s = 0; s < seqs.count(); ++s) {
    if (seqs.length(s) == 0) continue;
    const int64_t keys = sizes.before[static_cast<size_t>(s)] + seqs.length(s);
    for (int64_t at = 0; at < keys; at += length)
      rows.insert(rows.end(), {s, at, std::min(length, keys - at), at / length});
  }
  const auto pieces = static_cast<int64_t>(rows.size()) / 4;
  return Tensor::of(std::span<const int64_t>(rows), {pieces, 4}).on(device);
}

void attention_append(const AttentionAppend& args, Stream stream) {
  const AttentionTables tables(args.sizes, args.seqs, args.k.size(0), args.kv);
  const int64_t blocks = divide_up(args.kv.size(2) * args.k.size(0), kThreads);
  require(blocks < (int64_t{1} << 31), "attention: ", args.k.size(0), " rows join a state in one call; pass fewer");
  with_element(args.kv.dtype(), "attention", [&]<class T>(T) {
    launch("attention append", append_kernel<T>, dim3(static_cast<unsigned>(blocks)), kThreads, stream,
           rows<const T>(args.k), rows<const T>(args.v), key_rows<T>(args.kv), tables.places, args.seqs.count());
  });
}

bool wants_lse(const AttentionForward& args) { return tiles_take(args) && args.sizes.p <= kMostBackwardWidth; }

void attention_forward(const AttentionForward& args, Stream stream) {
  if (!args.lse && few_rows(args)) return attention_rows_forward(args, stream);
  if (!tiles_take(args)) return attention_plain_forward(args, stream);
  warpgroups_take(args.sizes, args.q.device()) ? attention_warpgroup_forward(args, stream)
                                               : attention_tile_forward(args, stream);
}

void attention_backward(const AttentionBackward& args, Stream stream) {
  const bool tiles = args.lse && rows_on(args.dout, 16) && rows_on(args.out, 4) && rows_on(args.dq, 4) &&
                     rows_on(args.dk, 4) && rows_on(args.dv, 4);
  if (!tiles) return attention_plain_backward(args, stream);
  warpgroups_take(args.sizes, args.q.device()) ? attention_warpgroup_backward(args, stream)
                                               : attention_tile_backward(args, stream);
}

}  // namespace ssm::cuda
