// The selective scan forward on a GPU: which kernel, how a block of it is made, and whether time is cut into pieces.
#include <algorithm>

#include "ops/selective_scan/selective_scan_forward.cuh"
#include "ops/selective_scan/selective_scan_step.cuh"

namespace ssm::cuda {
namespace {

// The states at the begin of each piece, in place of `ends`, where the piece would end had it begun at 0: a piece
// multiplies a state by e^(A times the sum of its Delta), (6). One thread a state, first piece to last.
template <class T>
__global__ void scan_carry_kernel(const __grid_constant__ ScanArguments<T> args, int64_t count) {
  const int64_t piece = blockIdx.x, states = static_cast<int64_t>(args.n) * args.e;
  const int64_t i = blockIdx.y * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  const int64_t sequence = args.pieces[piece * 4];
  if (i >= states || args.pieces[piece * 4 + 3] != 0) return;
  const int64_t n = i / args.e, c = i % args.e;
  const float A = -kLog2E * expf(args.A_log[c * args.n + n]);
  float h = args.h ? args.h[args.slots[sequence] * states + i] : 0.0f;
  for (int64_t p = piece; p < count && args.pieces[p * 4] == sequence; ++p) {
    const float end = args.ends[p * states + i], decay = exp2_fast(A * args.steps[p * args.e + c]);
    args.ends[p * states + i] = h;
    h = fmaf(decay, h, end);
  }
}

template <class S, ScanOutput kOutput, bool kAligned>
void launch_scan(ScanArguments<typename S::Element> arguments, int64_t pieces, Stream stream) {
  arguments.slabs = static_cast<int>(divide_up(arguments.e, S::kWidth));
  const int64_t blocks = pieces * arguments.slabs;
  require(blocks < int64_t{1} << 31, "selective_scan: ", pieces, " sequences of ", arguments.e,
          " channels are more than one launch holds; split the batch");
  launch("selective_scan", scan_forward_kernel<S, kOutput, kAligned>, dim3(static_cast<unsigned>(blocks)),
         dim3(S::kThreads), LaunchOptions{.shared = S::kShared}, stream, arguments);
}

// How blocks are made, by how many channels there are in all. README.md has the times of each for every size.
template <class T>
using Few = ScanShape<T, 1, 1, 2, 2, 4, 64, 4, 1>;  // 16 channels
template <class T>
using Many64 = ScanShape<T, 2, 2, 4, 1, 4, 16, 1, 3>;  // 64 channels
template <class T>
using Many96 = ScanShape<T, 1, 2, 12, 1, sizeof(T) == 2 ? 3 : 6, 16, 2, 1>;  // 96
template <class T>
using Many128 = ScanShape<T, 2, 2, 8, 1, 4, 32, 1, 1>;  // 128
template <class T>
using Deep = ScanShape<T, 2, 2, 1, 4, 2, 32, 1, 1>;  // 16 channels of 17 to 64 states
template <class T>
using Deepest = ScanShape<T, 4, 2, 1, 16, 2, 16, 1, 1>;  // 32 channels of 65 to 256 states

// Pieces of at least this many tokens; shorter ones would not be worth their launch.
constexpr int64_t kShortestPiece = 512;

// Time is cut when the channels fill no third of the GPU: cutting costs a pass more, without y.
template <class S, bool kAligned>
void run(const ScanForward& args, ScanArguments<typename S::Element> arguments, Stream stream) {
  const Device device = args.x.device();
  const Seqs& seqs = *args.seqs;
  const int64_t slabs = divide_up(arguments.e, S::kWidth), slots = multiprocessors(device) * S::kBlocks;
  const int64_t cuts = slots / std::max<int64_t>(1, divide_up(seqs.tokens(), seqs.longest) * slabs);
  arguments.piece_length = divide_up(seqs.longest, kScanChunkCuda) * kScanChunkCuda;
  if (cuts < 3 || seqs.longest < 4 * kShortestPiece) {
    const Tensor& pieces = seqs.pieces(device, arguments.piece_length);
    arguments.pieces = elements<const int64_t>(pieces);
    launch_scan<S, ScanOutput::all, kAligned>(arguments, pieces.size(0), stream);
    return;
  }
  arguments.piece_length =
      std::max(kShortestPiece, divide_up(divide_up(seqs.longest, cuts), kScanChunkCuda) * kScanChunkCuda);
  const Tensor& pieces = seqs.pieces(device, arguments.piece_length);
  const int64_t count = pieces.size(0);
  const int64_t n = arguments.n, e = arguments.e;
  const Tensor ends = Tensor::empty(Shape{count, n, e}, DType::f32, device);
  const Tensor steps = Tensor::empty(Shape{count, e}, DType::f32, device);
  arguments.pieces = elements<const int64_t>(pieces);
  arguments.ends = elements<float>(ends);
  arguments.steps = elements<float>(steps);
  launch_scan<S, ScanOutput::ends_only, kAligned>(arguments, count, stream);
  launch("selective_scan", scan_carry_kernel<typename S::Element>,
         dim3(static_cast<unsigned>(count), static_cast<unsigned>(divide_up(n * e, 128))), dim3(128), stream, arguments,
         count);
  launch_scan<S, ScanOutput::all, kAligned>(arguments, count, stream);
}

template <class T>
void forward(const ScanForward& args, Stream stream) {
  const int64_t e = args.x.size(1), n = args.B.size(1);
  require(n <= 256, "selective_scan: d_state is ", n, "; on a GPU it may be up to 256");
  const Seqs::Tables& tables = args.seqs->tables(args.x.device());
  const ScanArguments<T> arguments{.x = rows<const T>(args.x),
                                   .dt = rows<const T>(args.dt),
                                   .z = rows<const T>(args.z),
                                   .B = rows<const T>(args.B),
                                   .C = rows<const T>(args.C),
                                   .out = rows<T>(args.out),
                                   .A_log = elements<const float>(args.A_log),
                                   .D = elements<const float>(args.D),
                                   .dt_bias = elements<const float>(args.dt_bias),
                                   .h = elements<float>(args.h),
                                   .starts = elements<Rounded<T>>(args.starts),
                                   .offsets = elements<const int64_t>(tables.offsets),
                                   .slots = elements<const int64_t>(tables.slots),
                                   .e = static_cast<int>(e),
                                   .n = static_cast<int>(n)};
  constexpr int64_t kStrip = 16 / sizeof(T);
  bool vectors = e % kStrip == 0 && n % kStrip == 0;
  for (const Tensor* one : {&args.x, &args.dt, &args.z, &args.B, &args.C, &args.out})
    vectors = vectors && aligned(*one, 16);
  const int64_t channels = divide_up(args.seqs->tokens(), args.seqs->longest) * e;
  if (n > 64)
    vectors ? run<Deepest<T>, true>(args, arguments, stream) : run<Deepest<T>, false>(args, arguments, stream);
  else if (n > 16)
    vectors ? run<Deep<T>, true>(args, arguments, stream) : run<Deep<T>, false>(args, arguments, stream);
  else if (!vectors)
    run<Few<T>, false>(args, arguments, stream);
  else if (channels <= 32 * multiprocessors(args.x.device()))
    run<Few<T>, true>(args, arguments, stream);
  else {
    // All blocks take as long as the multiprocessor with most channels; the wide slab does best where few are left to
    // follow each other.
    const int64_t sequences = divide_up(args.seqs->tokens(), args.seqs->longest),
                  processors = multiprocessors(args.x.device());
    const auto busiest = [&](int64_t width) { return divide_up(sequences * divide_up(e, width), processors) * width; };
    const int64_t least = std::min({busiest(64), busiest(96), busiest(128)});
    if (busiest(128) == least && least <= 256)
      run<Many128<T>, true>(args, arguments, stream);
    else if (busiest(64) == least)
      run<Many64<T>, true>(args, arguments, stream);
    else if (busiest(96) == least)
      run<Many96<T>, true>(args, arguments, stream);
    else
      run<Many128<T>, true>(args, arguments, stream);
  }
}

// Up to this many tokens a sequence the states' traffic is the whole cost, wherever they are kept in between.
constexpr int64_t kStepTokens = 4;

}  // namespace

void selective_scan_forward(const ScanForward& args, Stream stream) {
  if (args.seqs->tokens() == 0 || args.x.size(1) == 0) return;
  const int64_t longest = args.seqs->longest;
  if (!args.starts && longest <= kStepTokens && (args.h || longest == 1)) {
    selective_scan_step(args, stream);
    return;
  }
  with_element(args.x.dtype(), "selective_scan", [&](auto element) { forward<decltype(element)>(args, stream); });
}

}  // namespace ssm::cuda
