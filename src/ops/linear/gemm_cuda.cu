// GEMM on a GPU through cuBLASLt. The library is opened when first used, so the program starts without it; its header
// types the functions. Row-major C = op(A) op(B) is the library's column-major C^T = op(B)^T op(A)^T.
#include <cublasLt.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <vector>

#include "core/cuda_kernel.cuh"
#include "ops/linear/gemm.h"

namespace ssm::cuda {
namespace {

constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;  // what the library's documentation advises for sm_90
constexpr int kCandidates = 24;
constexpr int kTimedRuns = 5;
// Below this a product is a few microseconds whatever the algorithm, and events do not resolve the difference.
constexpr double kFewestOperations = 1e7;
// A candidate takes over only when it is faster by this: less is noise.
constexpr double kWorthwhile = 0.97;
// Up to so many rows of the result, which is writing and not training, a candidate may also have other bits: the sums
// there have to be split over more blocks than the result has tiles.
constexpr int64_t kDecodingRows = 256;
constexpr int64_t kCacheBytes = int64_t{128} << 20;  // more than a GPU's second-level cache holds

std::atomic<bool> tf32_allowed{false};

// The library: its functions, under their own names.
struct Lt {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtMatmul) matmul;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
  decltype(&cublasLtMatmulDescCreate) make_operation;
  decltype(&cublasLtMatmulDescDestroy) drop_operation;
  decltype(&cublasLtMatmulDescSetAttribute) set_operation;
  decltype(&cublasLtMatrixLayoutCreate) make_layout;
  decltype(&cublasLtMatrixLayoutDestroy) drop_layout;
  decltype(&cublasLtMatmulPreferenceCreate) make_preference;
  decltype(&cublasLtMatmulPreferenceDestroy) drop_preference;
  decltype(&cublasLtMatmulPreferenceSetAttribute) set_preference;
  decltype(&cublasLtGetStatusString) words;
};

void* open_library(std::string& tried) {
  std::vector<std::string> places = {""};
  if (const char* home = std::getenv("CUDA_HOME")) places.push_back(text(home, "/lib64/"));
  places.push_back("/usr/local/cuda/lib64/");
  for (const std::string& place : places) {
    for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"}) {
      if (void* library = dlopen((place + name).c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
      tried += text(tried.empty() ? "" : ", ", place, name);
    }
  }
  return nullptr;
}

const Lt& lt() {
  static const Lt functions = [] {
    std::string tried;
    void* library = open_library(tried);
    require(library, "matrix products on the GPU need cuBLASLt, and none of these could be opened: ", tried,
            "; install the CUDA toolkit's cuBLAS or add its directory to LD_LIBRARY_PATH");
    Lt result{};
    const auto find = [&](auto& function, const char* name) {
      void* address = dlsym(library, name);
      std::memcpy(&function, &address, sizeof(address));  // a pointer to data is not to be cast to one to a function
      require(address, "libcublasLt lacks ", name, ": version 12 or 13 is expected");
    };
    find(result.create, "cublasLtCreate");
    find(result.matmul, "cublasLtMatmul");
    find(result.heuristic, "cublasLtMatmulAlgoGetHeuristic");
    find(result.make_operation, "cublasLtMatmulDescCreate");
    find(result.drop_operation, "cublasLtMatmulDescDestroy");
    find(result.set_operation, "cublasLtMatmulDescSetAttribute");
    find(result.make_layout, "cublasLtMatrixLayoutCreate");
    find(result.drop_layout, "cublasLtMatrixLayoutDestroy");
    find(result.make_preference, "cublasLtMatmulPreferenceCreate");
    find(result.drop_preference, "cublasLtMatmulPreferenceDestroy");
    find(result.set_preference, "cublasLtMatmulPreferenceSetAttribute");
    find(result.words, "cublasLtGetStatusString");
    return result;
  }();
  return functions;
}

void check(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS) throw Error("gemm: ", what, ": cuBLASLt says ", lt().words(status));
}

cudaDataType_t type_of(DType dtype) {
  switch (dtype) {
    case DType::f32: return CUDA_R_32F;
    case DType::bf16: return CUDA_R_16BF;
    case DType::f16: return CUDA_R_16F;
    default: throw Error("gemm: ", name_of(dtype), " on a GPU; expected f32, bf16 or f16");
  }
}

// One matrix as the library sees it: column-major, so our rows are its columns.
struct Operand {
  void* data;
  DType dtype;
  int64_t rows, columns, stride;  // ours
  explicit Operand(const Tensor& tensor)
      : data(tensor.raw()),
        dtype(tensor.dtype()),
        rows(tensor.size(0)),
        columns(tensor.size(1)),
        stride(rows > 1 ? tensor.stride(0) : std::max<int64_t>(1, columns)) {
    require(tensor.device().is_cuda(), "gemm: a matrix ", tensor.shape(), " is on the host");
  }
  // Bytes on which every row begins, as a power of two up to 256, which is as much as the library asks for.
  uint32_t alignment() const {
    const uint64_t bits =
        reinterpret_cast<uintptr_t>(data) | static_cast<uint64_t>(rows > 1 ? stride * bytes_of(dtype) : 256) | 256;
    return static_cast<uint32_t>(bits & (~bits + 1));
  }
};

// All that the choice of an algorithm may depend on.
using Key = std::array<int64_t, 12>;

// The library's type has no name of its own, which nvcc 13.0 does not survive as an element of std::vector.
struct Algorithm {
  cublasLtMatmulAlgo_t value;
};

// One GPU's handle, workspace and choices.
struct Engine {
  cublasLtHandle_t handle = nullptr;
  std::shared_ptr<std::byte> workspace;
  std::map<Key, Algorithm> choices;
};

// The library's descriptors of one product.
class Product {
 public:
  Product(const Operand& a, Transpose transpose_a, const Operand& b, Transpose transpose_b, const Operand& c,
          const Tensor& bias, bool tf32) {
    const auto compute = tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
    check(lt().make_operation(&operation_, compute, CUDA_R_32F), "describe a product");
    const auto operation = [](Transpose transpose) {
      return static_cast<int32_t>(transpose == Transpose::yes ? CUBLAS_OP_T : CUBLAS_OP_N);
    };
    set(CUBLASLT_MATMUL_DESC_TRANSA, operation(transpose_b));
    set(CUBLASLT_MATMUL_DESC_TRANSB, operation(transpose_a));
    if (bias) {
      set(CUBLASLT_MATMUL_DESC_EPILOGUE, static_cast<uint32_t>(CUBLASLT_EPILOGUE_BIAS));
      set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias.raw());
      set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, static_cast<int32_t>(type_of(bias.dtype())));
    }
    layout(a_, b);
    layout(b_, a);
    layout(c_, c);
    layout(d_, c);
  }
  ~Product() {
    lt().drop_layout(a_), lt().drop_layout(b_), lt().drop_layout(c_), lt().drop_layout(d_);
    lt().drop_operation(operation_);
  }
  Product(const Product&) = delete;
  Product& operator=(const Product&) = delete;

  // The library's candidates, best first by its own reckoning.
  std::vector<Algorithm> candidates(const Engine& engine, const Operand& a, const Operand& b, const Operand& c) const {
    cublasLtMatmulPreference_t preference = nullptr;
    check(lt().make_preference(&preference), "ask for an algorithm");
    const auto want = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      check(lt().set_preference(preference, attribute, &value, sizeof(value)), "ask for an algorithm");
    };
    want(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(kWorkspaceBytes));
    // Parts of a sum over k are added in f32: in the result's type they would be rounded, and in f16 overflow.
    want(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    want(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b.alignment());
    want(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a.alignment());
    want(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c.alignment());
    want(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, c.alignment());
    std::array<cublasLtMatmulHeuristicResult_t, kCandidates> found{};
    int count = 0;
    const cublasStatus_t status =
        lt().heuristic(engine.handle, operation_, a_, b_, c_, d_, preference, kCandidates, found.data(), &count);
    lt().drop_preference(preference);
    if (status != CUBLAS_STATUS_NOT_SUPPORTED) check(status, "ask for an algorithm");
    std::vector<Algorithm> result;
    for (int i = 0; i < count; ++i)
      if (found[static_cast<size_t>(i)].state == CUBLAS_STATUS_SUCCESS)
        result.push_back({found[static_cast<size_t>(i)].algo});
    return result;
  }

  // d = scale op(a) op(b) (+ c)
  cublasStatus_t run(const Engine& engine, const Algorithm& choice, const Operand& a, const Operand& b,
                     const Operand& c, void* d, float scale, bool accumulate, Stream stream) const {
    const float beta = accumulate ? 1 : 0;
    return lt().matmul(engine.handle, operation_, &scale, b.data, a_, a.data, b_, &beta, c.data, c_, d, d_,
                       &choice.value, engine.workspace.get(), kWorkspaceBytes, stream);
  }

 private:
  template <class T>
  void set(cublasLtMatmulDescAttributes_t attribute, T value) {
    check(lt().set_operation(operation_, attribute, &value, sizeof(value)), "describe a product");
  }
  static void layout(cublasLtMatrixLayout_t& to, const Operand& m) {
    check(lt().make_layout(&to, type_of(m.dtype), static_cast<uint64_t>(m.columns), static_cast<uint64_t>(m.rows),
                           m.stride),
          "describe a matrix");
  }
  cublasLtMatmulDesc_t operation_ = nullptr;
  cublasLtMatrixLayout_t a_ = nullptr, b_ = nullptr, c_ = nullptr, d_ = nullptr;  // the library's letters
};

// Whether two results differ in any bit, counted in halves of 4 bytes. All who write the answer write the same.
__global__ void differ_kernel(const uint16_t* found, const uint16_t* expected, int64_t columns, int64_t stride,
                              int64_t count, int32_t* answer) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  bool differ = false;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const int64_t at = i / columns * stride + i % columns;
    differ |= found[at] != expected[at];
  }
  if (differ) *answer = 1;
}

bool same_bits(const Operand& c, const void* found, const void* expected, const Device& device, Stream stream) {
  const Tensor answer = Tensor::zeros({1}, DType::i32, device);
  const int64_t half = bytes_of(c.dtype) / 2, columns = c.columns * half, count = c.rows * columns;
  launch("gemm", differ_kernel, dim3(static_cast<unsigned>(std::min<int64_t>(1024, divide_up(count, 256)))), dim3(256),
         stream, static_cast<const uint16_t*>(found), static_cast<const uint16_t*>(expected), columns, c.stride * half,
         count, elements<int32_t>(answer));
  return answer.on(Device::cpu()).item<int32_t>() == 0;
}

// Seconds of one run: the median of a few, each after the one before. With `others`, as many bytes are written between
// them as push the operands out of the cache: while a model writes, a weight comes from memory each time.
double time_of(const std::function<void()>& run, const Tensor& others, Stream stream) {
  std::array<double, kTimedRuns> seconds{};
  run();
  Event begin, end;
  for (double& one : seconds) {
    if (others) others.fill_zero();
    begin.record(stream);
    run();
    end.record(stream);
    end.wait();
    one = end.since(begin);
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[kTimedRuns / 2];
}

// The fastest candidate, with the bits of the first unless the rows are few, tried on the operands of this call.
Algorithm fastest(const Engine& engine, const Product& product, const std::vector<Algorithm>& candidates,
                  const Operand& a, const Operand& b, const Operand& c, bool accumulate, const Device& device,
                  Stream stream) {
  // What is added to must not be added to many times: then the trials go to scratch rows of c's stride.
  const Shape whole{c.rows, c.stride};
  const Tensor other = Tensor::empty(whole, c.dtype, device),
               instead = accumulate ? Tensor::empty(whole, c.dtype, device) : Tensor();
  void* first = accumulate ? instead.raw() : c.data;
  const auto run = [&](const Algorithm& choice, void* to) {
    check(product.run(engine, choice, a, b, c, to, 1, accumulate, stream), "try an algorithm");
  };
  const Tensor others = c.rows <= kDecodingRows ? Tensor::empty({kCacheBytes / 4}, DType::f32, device) : Tensor();
  Algorithm best = candidates.front();
  double shortest = time_of([&] { run(best, first); }, others, stream);
  for (size_t i = 1; i < candidates.size(); ++i) {
    const double seconds = time_of([&] { run(candidates[i], other.raw()); }, others, stream);
    if (seconds > kWorthwhile * shortest) continue;
    if (c.rows > kDecodingRows && !same_bits(c, other.raw(), first, device, stream)) continue;
    best = candidates[i];
    shortest = seconds;
  }
  return best;
}

std::mutex& engines_mutex() {
  static auto* mutex = new std::mutex;
  return *mutex;
}

// One an index of a GPU; never destroyed, like the GPU itself.
Engine& engine_of(const Device& device) {
  static auto* engines = new std::map<int, Engine>;
  Engine& engine = (*engines)[device.index];
  if (!engine.handle) {
    check(lt().create(&engine.handle), "open the GPU");
    engine.workspace = cuda::allocate_bytes(kWorkspaceBytes, device);
  }
  return engine;
}

}  // namespace

void allow_tf32(bool allowed) { tf32_allowed = allowed; }

void gemm(const Tensor& a, Transpose transpose_a, const Tensor& b, Transpose transpose_b, const Tensor& c,
          bool accumulate, Stream stream, const Tensor& bias, float scale) {
  const Operand left(a), right(b), result(c);
  const int64_t m = result.rows, n = result.columns, k = transpose_a == Transpose::yes ? left.rows : left.columns;
  DCHECK((transpose_a == Transpose::yes ? left.columns : left.rows) == m);
  DCHECK((transpose_b == Transpose::yes ? right.rows : right.columns) == n);
  DCHECK((transpose_b == Transpose::yes ? right.columns : right.rows) == k);
  DCHECK(a.dtype() == b.dtype() && (c.dtype() == a.dtype() || c.dtype() == DType::f32));
  DCHECK(!bias || bias.dtype() == c.dtype());
  if (m == 0 || n == 0) return;
  if (k == 0) {  // a sum of nothing
    require(!bias, "gemm: a product over no columns with a bias");
    if (!accumulate) fill_zero(c);
    return;
  }
  const bool tf32 = tf32_allowed && a.dtype() == DType::f32;
  const std::lock_guard lock(engines_mutex());
  Engine& engine = engine_of(c.device());
  const Product product(left, transpose_a, right, transpose_b, result, bias, tf32);

  const auto kind = [](Transpose one, Transpose two, bool three, bool four, bool five) {
    return (one == Transpose::yes) + 2 * (two == Transpose::yes) + 4 * three + 8 * four + 16 * five;
  };
  const Key key = {m,
                   n,
                   k,
                   left.stride,
                   right.stride,
                   result.stride,
                   static_cast<int64_t>(a.dtype()),
                   static_cast<int64_t>(c.dtype()),
                   left.alignment(),
                   right.alignment(),
                   result.alignment(),
                   kind(transpose_a, transpose_b, accumulate, static_cast<bool>(bias), tf32)};
  auto found = engine.choices.find(key);
  if (found == engine.choices.end()) {
    const std::vector<Algorithm> candidates = product.candidates(engine, left, right, result);
    require(!candidates.empty(), "gemm: cuBLASLt has no algorithm for (", m, ", ", k, ") (", k, ", ", n, ") in ",
            name_of(a.dtype()), " to ", name_of(c.dtype()));
    const bool quick =
        2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k) < kFewestOperations;
    const bool measure = candidates.size() > 1 && !quick && !recording(c.device());
    const Algorithm choice =
        measure ? fastest(engine, product, candidates, left, right, result, accumulate, c.device(), stream)
                : candidates.front();
    // A choice made while recording is not kept: the next call may measure.
    if (recording(c.device())) {
      check(product.run(engine, choice, left, right, result, result.data, scale, accumulate, stream), "run");
      return;
    }
    found = engine.choices.emplace(key, choice).first;
  }
  check(product.run(engine, found->second, left, right, result, result.data, scale, accumulate, stream), "run");
}

}  // namespace ssm::cuda
