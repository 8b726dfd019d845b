// What files of kernels share: error checks that name the operation, launches, choice of the element type, and 16-byte
// loads and stores of f32, bf16 and f16. Included by .cu files alone.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

#include "core/cuda.h"
#include "core/error.h"
#include "core/tensor.h"

namespace ssm::cuda {

// Throws Error with the operation and the driver's words.
void check(cudaError_t status, const char* what);

using bf16 = __nv_bfloat16;
using f16 = __half;

template <class T>
struct ElementOf;
template <>
struct ElementOf<float> {
  static constexpr DType dtype = DType::f32;
};
template <>
struct ElementOf<bf16> {
  static constexpr DType dtype = DType::bf16;
};
template <>
struct ElementOf<f16> {
  static constexpr DType dtype = DType::f16;
};
template <>
struct ElementOf<int64_t> {
  static constexpr DType dtype = DType::i64;
};
template <>
struct ElementOf<int32_t> {
  static constexpr DType dtype = DType::i32;
};
template <>
struct ElementOf<double> {
  static constexpr DType dtype = DType::f64;
};

// The device pointer of a tensor; null when it is absent.
template <class T>
T* elements(const Tensor& tensor) {
  if (!tensor) return nullptr;
  using Element = std::remove_const_t<T>;
  require(tensor.dtype() == ElementOf<Element>::dtype, "expected elements of ", name_of(ElementOf<Element>::dtype),
          ", found ", name_of(tensor.dtype()));
  require(tensor.device().is_cuda(), "a tensor ", tensor.shape(), " on the host was given to a kernel");
  return static_cast<T*>(tensor.raw());
}

// Rows with unit inner stride, as a kernel's argument; `data` is null when absent.
template <class T>
struct Rows {
  T* data = nullptr;
  int64_t stride = 0;
  __device__ __host__ T* operator[](int64_t row) const { return data + row * stride; }
  __device__ __host__ explicit operator bool() const { return data != nullptr; }
};
template <class T>
Rows<T> rows(const Tensor& tensor) {  // rank 1 is one row
  if (!tensor) return {};
  DCHECK(tensor.rank() <= 2 && (tensor.stride(-1) == 1 || tensor.size(-1) == 1));
  return {elements<T>(tensor), tensor.rank() == 2 ? tensor.stride(0) : tensor.size(0)};
}
// Whether every row begins on a boundary of `bytes`.
inline bool aligned(const Tensor& tensor, int64_t bytes) {
  if (!tensor) return true;
  const int64_t step = tensor.rank() >= 2 ? tensor.stride(0) * bytes_of(tensor.dtype()) : 0;
  return reinterpret_cast<uintptr_t>(tensor.raw()) % static_cast<uintptr_t>(bytes) == 0 && step % bytes == 0;
}

// f(T()) with T = float, bf16 or f16.
template <class F>
void with_element(DType dtype, const char* op, const F& f) {
  switch (dtype) {
    case DType::f32: return f(float{});
    case DType::bf16: return f(bf16{});
    case DType::f16: return f(f16{});
    default: throw Error(text(op, ": ", name_of(dtype), " on a GPU; expected f32, bf16 or f16"));
  }
}

template <class T>
__device__ __forceinline__ float to_float(T value) {
  if constexpr (std::is_same_v<T, bf16>)
    return __bfloat162float(value);
  else if constexpr (std::is_same_v<T, f16>)
    return __half2float(value);
  else
    return static_cast<float>(value);
}
template <class T>
__device__ __forceinline__ T from_float(float value) {
  if constexpr (std::is_same_v<T, bf16>)
    return __float2bfloat16_rn(value);
  else if constexpr (std::is_same_v<T, f16>)
    return __float2half_rn(value);
  else
    return value;
}

// kCount neighbours in one access of kCount * sizeof(T) bytes (4, 8 or 16; 32 becomes two of 16).
template <class T, int kCount>
struct alignas(sizeof(T) * kCount > 16 ? 16 : sizeof(T) * kCount) Pack {
  T value[kCount];
};
template <int kCount, class T>
__device__ __forceinline__ void load_floats(const T* from, float (&to)[kCount]) {
  const auto pack = *reinterpret_cast<const Pack<T, kCount>*>(from);
#pragma unroll
  for (int i = 0; i < kCount; ++i) to[i] = to_float(pack.value[i]);
}
template <int kCount, class T>
__device__ __forceinline__ void store_floats(T* to, const float (&from)[kCount]) {
  Pack<T, kCount> pack;
#pragma unroll
  for (int i = 0; i < kCount; ++i) pack.value[i] = from_float<T>(from[i]);
  *reinterpret_cast<Pack<T, kCount>*>(to) = pack;
}

struct LaunchOptions {
  size_t shared = 0;  // dynamic shared memory, bytes; more than 48 KiB is asked of the driver
  // The kernel may start before those before it end (programmatic dependent launch). It must call
  // wait_for_previous_kernels() in every block before it reads or writes anything that others touch.
  bool early = false;
};

// What the thread's current GPU can do of these.
struct LaunchLimits {
  size_t shared;  // most bytes of shared memory that a block may ask for
  bool early;     // since compute capability 9.0
};
LaunchLimits launch_limits();

template <class... Parameters, class... Arguments>
void launch(const char* op, void (*kernel)(Parameters...), dim3 grid, dim3 block, const LaunchOptions& options,
            Stream stream, Arguments&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  const LaunchLimits limits = launch_limits();
  require(options.shared <= limits.shared, op, ": its kernel needs ", options.shared / 1024,
          " KiB of shared memory a block, this GPU has ", limits.shared / 1024, "; use --device cpu");
  if (options.shared > 48 * 1024)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(options.shared)),
          op);
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = options.shared;
  config.stream = stream;
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &early;
  config.numAttrs = options.early && limits.early ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(std::forward<Arguments>(arguments))...), op);
}
template <class... Parameters, class... Arguments>
void launch(const char* op, void (*kernel)(Parameters...), dim3 grid, dim3 block, Stream stream,
            Arguments&&... arguments) {
  launch(op, kernel, grid, block, LaunchOptions{}, stream, std::forward<Arguments>(arguments)...);
}

// For kernels launched with `early`.
__device__ __forceinline__ void wait_for_previous_kernels() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace ssm::cuda
