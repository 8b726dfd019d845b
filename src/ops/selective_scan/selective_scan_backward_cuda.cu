// The selective scan's backward on a GPU: cuts sequences into pieces where there are too few channels to fill it,
// launches the kernels of selective_scan_backward.cuh, and adds the shares that blocks leave of dB, dC and of the
// parameters' gradients, in fixed order.
#include <algorithm>
#include <vector>

#include "ops/selective_scan/selective_scan_backward.cuh"

namespace ssm::cuda {
namespace {

constexpr char kName[] = "selective_scan backward";
constexpr int kMostWorkers = 512;  // shares of dA are (workers, 16, e): 50 MB at e = 1536

struct Plan {
  std::vector<Piece> pieces;
  std::vector<int32_t> workers = {0};  // as in BackwardArgs
  bool cut = false;                    // some sequence is in several pieces
};

Plan cut(const Seqs& seqs, int64_t piece_tokens) {
  Plan plan;
  int64_t chunk = 0;
  for (int64_t s = 0; s < seqs.count(); ++s) {
    const int64_t length = seqs.length(s);
    for (int64_t begin = 0; begin < length; begin += piece_tokens) {
      const int64_t end = std::min(length, begin + piece_tokens);
      plan.cut |= begin > 0;
      plan.pieces.push_back({.token = seqs.offsets[static_cast<size_t>(s)] + begin,
                             .chunk = chunk + begin / kChunk,
                             .tokens = static_cast<int32_t>(end - begin),
                             .slot = static_cast<int32_t>(seqs.slots[static_cast<size_t>(s)]),
                             .last = end == length,
                             .first = begin == 0});
    }
    chunk += divide_up(length, kChunk);
  }
  return plan;
}

// Pieces such that `slots` blocks at once, `blocks` to a piece, end together as early as may be: in 1 to 4 rounds. A
// cut is paid with a second look at the piece, a quarter of the work.
Plan plan_pieces(const Seqs& seqs, int64_t blocks, int64_t slots) {
  const auto rounds = [&](double tokens) { return tokens * static_cast<double>(blocks) / static_cast<double>(slots); };
  const auto whole = static_cast<double>(seqs.longest);
  // Uncut: full rounds of the longest, or of what there is.
  const int64_t sequences = std::max<int64_t>(1, seqs.count());
  double best = std::max(whole, rounds(static_cast<double>(seqs.tokens())));
  if (seqs.tokens() > sequences * seqs.longest * 3 / 4)
    best = std::max(best, whole * static_cast<double>(divide_up(sequences * blocks, slots)));
  int64_t piece_tokens = divide_up(std::max<int64_t>(seqs.longest, 1), kChunk) * kChunk;
  for (int64_t round = 1; round <= 4; ++round) {
    const int64_t pieces = round * slots / blocks;
    if (pieces <= sequences) continue;
    const int64_t tokens = divide_up(divide_up(seqs.tokens(), pieces), kChunk) * kChunk;
    if (tokens >= seqs.longest) continue;
    int64_t found = 0;
    for (int64_t s = 0; s < seqs.count(); ++s) found += divide_up(seqs.length(s), tokens);
    const double share = static_cast<double>(found - sequences) / static_cast<double>(found);
    const double cost = static_cast<double>(divide_up(found * blocks, slots) * tokens) * (1 + 0.25 * share);
    if (cost < best) best = cost, piece_tokens = tokens;
  }
  Plan plan = cut(seqs, piece_tokens);
  const auto count = static_cast<int64_t>(plan.pieces.size()), workers = std::min<int64_t>(count, kMostWorkers);
  for (int64_t w = 1; w <= workers; ++w) plan.workers.push_back(static_cast<int32_t>(count * w / workers));
  return plan;
}

template <class Entry>
void write_table(const std::vector<Entry>& from, Entry* to, Stream stream) {
  using Part = TablePart<Entry>;
  for (size_t begin = 0; begin < from.size(); begin += Part::kEntries) {
    const size_t count = std::min<size_t>(from.size() - begin, Part::kEntries);
    Part part{};
    std::copy_n(from.begin() + static_cast<std::ptrdiff_t>(begin), count, part.entries);
    launch(kName, write_table_kernel<Entry>, dim3(1), dim3(128), stream, part, static_cast<int>(count), to + begin);
  }
}

template <class T>
Rows<T> columns_from(Rows<T> rows, int64_t column) {
  if (rows.data) rows.data += column;
  return rows;
}

template <class T>
void backward_with(const ScanBackward& given, Stream stream) {
  const Device device = given.x.device();
  const int64_t tokens = given.x.size(0), e = given.x.size(1), n = given.B.size(1);
  const int64_t blocks = divide_up(e, kBlockChannels);
  const Plan plan = plan_pieces(*given.seqs, blocks, multiprocessors(device) * 2);
  const auto pieces = static_cast<int64_t>(plan.pieces.size());
  const auto workers = static_cast<int64_t>(plan.workers.size()) - 1;
  const auto floats = [&](const Shape& shape) { return Tensor::empty(shape, DType::f32, device); };

  const Tensor piece_table =
      Tensor::empty({pieces * static_cast<int64_t>(sizeof(Piece) / sizeof(int64_t)) + 1}, DType::i64, device);
  const Tensor worker_table = Tensor::empty({workers + 1}, DType::i32, device);
  auto* piece_entries = static_cast<Piece*>(piece_table.raw());
  write_table(plan.pieces, piece_entries, stream);
  write_table(plan.workers, elements<int32_t>(worker_table), stream);

  const int64_t groups = divide_up(n, kStates);
  const Tensor carried = plan.cut ? floats({pieces, n, e}) : Tensor(),
               delta_sums = plan.cut ? floats({pieces, e}) : Tensor();
  const Tensor dA = floats({workers, kStates, e}), dD = floats({workers, e}), dbias = floats({workers, e});
  const Tensor dBC = given.dB || given.dC ? floats({blocks, tokens, 2 * kStates}) : Tensor();
  const Tensor sums = groups > 1 ? floats({3, tokens, e}) : Tensor();

  BackwardArgs<T> args{.x = rows<const T>(given.x),
                       .dt = rows<const T>(given.dt),
                       .z = rows<const T>(given.z),
                       .dout = rows<const T>(given.dout),
                       .dx = rows<T>(given.dx),
                       .ddt = rows<T>(given.ddt),
                       .dz = rows<T>(given.dz),
                       .A_log = elements<const float>(given.A_log),
                       .D = elements<const float>(given.D),
                       .dt_bias = elements<const float>(given.dt_bias),
                       .starts = elements<const float>(given.starts),
                       .dh = elements<float>(given.dh),
                       .pieces = piece_entries,
                       .workers = elements<int32_t>(worker_table),
                       .carried = elements<float>(carried),
                       .delta_sums = elements<float>(delta_sums),
                       .dA = elements<float>(dA),
                       .dD = elements<float>(dD),
                       .dbias = elements<float>(dbias),
                       .dBC = elements<float>(dBC),
                       .tokens = tokens,
                       .e = e,
                       .n = static_cast<int32_t>(n)};
  if (sums) args.y = elements<float>(sums), args.dinput = args.y + tokens * e, args.ddelta = args.dinput + tokens * e;
  args.aligned = true;
  for (const Tensor* one : {&given.x, &given.dt, &given.z, &given.dout, &given.dx, &given.ddt, &given.dz})
    args.aligned &= aligned(*one, 4 * static_cast<int64_t>(sizeof(T)));
  args.aligned_BC = aligned(given.B, 16) && aligned(given.C, 16);

  const auto grid_y = [](int64_t count) { return static_cast<unsigned>(count); };
  for (int64_t group = 0; group < n; group += kStates) {
    args.group = static_cast<int32_t>(group);
    args.group_states = static_cast<int32_t>(std::min<int64_t>(n - group, kStates));
    args.first_group = group == 0;
    args.last_group = group + kStates >= n;
    args.B = columns_from(rows<const T>(given.B), group);
    args.C = columns_from(rows<const T>(given.C), group);
    if (plan.cut) {
      launch(kName, scan_backward_piece_kernel<T>,
             dim3(static_cast<unsigned>(divide_up(e, kBlockChannels)), grid_y(pieces)), dim3(32 * kWarps), stream,
             args);
      launch(kName, scan_backward_carry_kernel<T>,
             dim3(static_cast<unsigned>(divide_up(e, 64)), static_cast<unsigned>(args.group_states)), dim3(64), stream,
             args, static_cast<int>(pieces));
    }
    launch(kName, scan_backward_kernel<T>, dim3(static_cast<unsigned>(blocks), grid_y(workers)), dim3(32 * kWarps),
           {.shared = sizeof(SharedBackward<T>)}, stream, args);
    if (dBC)
      launch(kName, scan_backward_sum_tokens_kernel<T>, dim3(static_cast<unsigned>(divide_up(tokens * 8, 128))),
             dim3(128), stream, args.dBC, static_cast<int>(blocks), tokens, args.group_states,
             columns_from(rows<T>(given.dB), group), columns_from(rows<T>(given.dC), group));
    launch(kName, scan_backward_sum_workers_kernel,
           dim3(static_cast<unsigned>(divide_up(e, 64)), static_cast<unsigned>(args.group_states + 2)), dim3(64),
           stream, args.dA, args.dD, args.dbias, static_cast<int>(workers), e, static_cast<int>(n),
           static_cast<int>(group), args.group_states, args.A_log, elements<float>(given.dA_log),
           args.last_group ? elements<float>(given.dD) : nullptr,
           args.last_group ? elements<float>(given.ddt_bias) : nullptr);
  }
}

}  // namespace

void selective_scan_backward(const ScanBackward& args, Stream stream) {
  with_element(args.x.dtype(), kName, [&](auto element) { backward_with<decltype(element)>(args, stream); });
}

}  // namespace ssm::cuda
