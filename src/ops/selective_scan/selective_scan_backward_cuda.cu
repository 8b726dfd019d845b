// The selective scan's backward on a GPU: cuts sequences into pieces where there are too few channels to fill it,
// launches the kernels of selective_scan_backward.cuh, and adds the shares that blocks leave of dB, dC and of the
// parameters' gradients, in fixed order.
#include <algorithm>
#include <vector>

#include "ops/selective_scan/selective_scan_backward.cuh"
#include "ops/selective_scan/selective_scan_backward_sums.cuh"

namespace ssm::cuda {
namespace {

constexpr char kName[] = "selective_scan backward";
constexpr int kMostWorkers = 512;  // shares of dA are (workers, 16, e): 50 MB at e = 1536

struct Plan {
  std::vector<Piece> pieces;
  std::vector<int32_t> workers = {0};  // as in BackwardArgs
  bool cut = false;                    // some sequence is in several pieces
};

// The first `whole` sequences in one piece each, the others in pieces of `piece_tokens`.
Plan cut(const Seqs& seqs, int64_t whole, int64_t piece_tokens) {
  Plan plan;
  int64_t chunk = 0;
  for (int64_t s = 0; s < seqs.count(); ++s) {
    const int64_t length = seqs.length(s), step = s < whole ? std::max<int64_t>(length, 1) : piece_tokens;
    for (int64_t begin = 0; begin < length; begin += step) {
      const int64_t end = std::min(length, begin + step);
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

// Pieces such that blocks, `slots` at once and `blocks` to a piece, end together as early as may be. The first
// sequences stay whole and take full rounds; those that would leave slots empty in the last round are cut. What is
// cut is paid with a second look at all but a sequence's first piece, a third of the work, and two launches more.
Plan plan_pieces(const Seqs& seqs, int64_t blocks, int64_t slots) {
  constexpr double kSecondLook = 0.33, kLaunches = 100;  // of the work; tokens that a block walks meanwhile
  const int64_t sequences = seqs.count(), total = seqs.tokens(), longest = std::max<int64_t>(seqs.longest, 1);
  const auto share = [&](double tokens) { return tokens * static_cast<double>(blocks) / static_cast<double>(slots); };
  const bool alike = total > sequences * longest * 3 / 4;
  // The time of whole sequences, in tokens of one block.
  const auto uncut = [&](int64_t count, int64_t tokens) {
    if (count == 0) return 0.0;
    if (alike) return static_cast<double>(divide_up(count * blocks, slots) * longest);
    return std::max(static_cast<double>(longest), share(static_cast<double>(tokens)));
  };
  double best = uncut(sequences, total);
  int64_t best_whole = sequences, best_tokens = longest;
  const int64_t full_rounds = alike ? sequences * blocks / slots : 0;
  for (int64_t rounds_before = full_rounds; rounds_before >= std::max<int64_t>(0, full_rounds - 2); --rounds_before) {
    const int64_t whole = std::min(sequences, rounds_before * slots / blocks), rest = sequences - whole;
    const int64_t tokens_before = seqs.offsets[static_cast<size_t>(whole)];
    for (int64_t round = 1; round <= 4; ++round) {
      const int64_t pieces = round * slots / blocks;
      if (pieces <= rest || rest == 0) continue;
      const int64_t tokens = divide_up(divide_up(total - tokens_before, pieces), kChunk) * kChunk;
      if (tokens >= longest) continue;
      int64_t found = 0;
      for (int64_t s = whole; s < sequences; ++s) found += divide_up(seqs.length(s), tokens);
      const double cost = uncut(whole, tokens_before) + static_cast<double>(divide_up(found * blocks, slots) * tokens) +
                          kSecondLook * share(static_cast<double>((found - rest) * tokens)) + kLaunches;
      if (cost < best) best = cost, best_whole = whole, best_tokens = tokens;
    }
  }
  Plan plan = cut(seqs, best_whole, best_tokens);
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
  for (const Tensor* one :
       {&given.x, &given.dt, &given.z, &given.dout, &given.dx, &given.ddt, &given.dz, &given.out, &given.B, &given.C})
    require(!*one || (one->size(0) < int64_t{1} << 31 && one->stride(0) * bytes_of(one->dtype()) < int64_t{1} << 31),
            kName, ": ", one->shape(), " has more rows, or longer ones, than 32 bits number; split the batch");
  const int64_t blocks = divide_up(e, kBlockChannels);
  const Plan plan = plan_pieces(*given.seqs, blocks, multiprocessors(device) * SharedBackward<T>::kBlocks);
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
  const Tensor dBC = given.dB || given.dC
                         ? Tensor::empty({blocks, tokens, 2 * kStates}, ElementOf<Rounded<T>>::dtype, device)
                         : Tensor();
  const Tensor sums = groups > 1 ? floats({3, tokens, e}) : Tensor();

  BackwardArgs<T> args{.x = rows<const T>(given.x),
                       .dt = rows<const T>(given.dt),
                       .z = rows<const T>(given.z),
                       .dout = rows<const T>(given.dout),
                       .dx = rows<T>(given.dx),
                       .ddt = rows<T>(given.ddt),
                       .dz = rows<T>(given.dz),
                       .out = rows<T>(given.out),
                       .A_log = elements<const float>(given.A_log),
                       .D = elements<const float>(given.D),
                       .dt_bias = elements<const float>(given.dt_bias),
                       .starts = elements<const Rounded<T>>(given.starts),
                       .dh = elements<float>(given.dh),
                       .pieces = piece_entries,
                       .workers = elements<int32_t>(worker_table),
                       .carried = elements<float>(carried),
                       .delta_sums = elements<float>(delta_sums),
                       .dA = elements<float>(dA),
                       .dD = elements<float>(dD),
                       .dbias = elements<float>(dbias),
                       .dBC = elements<Rounded<T>>(dBC),
                       .tokens = tokens,
                       .e = static_cast<int32_t>(e),
                       .n = static_cast<int32_t>(n)};
  if (sums) args.y = elements<float>(sums), args.dinput = args.y + tokens * e, args.ddelta = args.dinput + tokens * e;
  bool aligned_rows = e * static_cast<int64_t>(sizeof(Rounded<T>)) % 16 == 0;
  for (const Tensor* one :
       {&given.x, &given.dt, &given.z, &given.dout, &given.dx, &given.ddt, &given.dz, &given.out, &given.B, &given.C})
    aligned_rows &= aligned(*one, 16);

  const auto grid_y = [](int64_t count) { return static_cast<unsigned>(count); };
  for (int64_t group = 0; group < n; group += kStates) {
    args.group = static_cast<int32_t>(group);
    args.group_states = static_cast<int32_t>(std::min<int64_t>(n - group, kStates));
    args.aligned = aligned_rows && args.group_states == kStates;
    args.first_group = group == 0;
    args.last_group = group + kStates >= n;
    args.B = columns_from(rows<const T>(given.B), group);
    args.C = columns_from(rows<const T>(given.C), group);
    if (plan.cut) {
      launch(kName, scan_backward_kernel<T, BackwardOutput::carried_only>,
             dim3(static_cast<unsigned>(blocks), grid_y(pieces)), dim3(kThreads), {.shared = sizeof(SharedBackward<T>)},
             stream, args);
      launch(kName, scan_backward_carry_kernel<T>,
             dim3(static_cast<unsigned>(divide_up(e, 64)), static_cast<unsigned>(args.group_states)), dim3(64), stream,
             args, static_cast<int>(pieces));
    }
    launch(kName, scan_backward_kernel<T, BackwardOutput::all>, dim3(static_cast<unsigned>(blocks), grid_y(workers)),
           dim3(kThreads), {.shared = sizeof(SharedBackward<T>)}, stream, args);
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
