// cuFFT behind fourier.h. A plan is made once for a size and a number of rows, and kept; its work area is taken from
// the allocator at each call, so that plans hold no memory to speak of and recorded graphs have their own.
#include <cufft.h>
#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "core/cuda_kernel.cuh"
#include "ops/fft_conv/fourier.h"

namespace ssm::cuda {
namespace {

// The library: its functions, under their own names.
struct Fft {
  decltype(&cufftCreate) create;
  decltype(&cufftDestroy) destroy;
  decltype(&cufftSetAutoAllocation) set_auto_allocation;
  decltype(&cufftMakePlanMany64) make_plan;
  decltype(&cufftSetStream) set_stream;
  decltype(&cufftSetWorkArea) set_work_area;
  decltype(&cufftExecR2C) forward_f32;
  decltype(&cufftExecC2R) inverse_f32;
  decltype(&cufftExecD2Z) forward_f64;
  decltype(&cufftExecZ2D) inverse_f64;
};

void* open_library(std::string& tried) {
  std::vector<std::string> places = {""};
  if (const char* home = std::getenv("CUDA_HOME")) places.push_back(text(home, "/lib64/"));
  places.push_back("/usr/local/cuda/lib64/");
  for (const std::string& place : places) {
    for (const char* name : {"libcufft.so.12", "libcufft.so.11", "libcufft.so"}) {
      if (void* library = dlopen((place + name).c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
      tried += text(tried.empty() ? "" : ", ", place, name);
    }
  }
  return nullptr;
}

const Fft& fft() {
  static const Fft functions = [] {
    std::string tried;
    void* library = open_library(tried);
    require(library, "Fourier transforms on the GPU (S4, S4D) need cuFFT, and none of these could be opened: ", tried,
            "; install the CUDA toolkit's cuFFT or add its directory to LD_LIBRARY_PATH");
    Fft result{};
    const auto find = [&](auto& function, const char* name) {
      void* address = dlsym(library, name);
      std::memcpy(&function, &address, sizeof(address));  // a pointer to data is not to be cast to one to a function
      require(address, "libcufft lacks ", name, ": version 11 or 12 is expected");
    };
    find(result.create, "cufftCreate");
    find(result.destroy, "cufftDestroy");
    find(result.set_auto_allocation, "cufftSetAutoAllocation");
    find(result.make_plan, "cufftMakePlanMany64");
    find(result.set_stream, "cufftSetStream");
    find(result.set_work_area, "cufftSetWorkArea");
    find(result.forward_f32, "cufftExecR2C");
    find(result.inverse_f32, "cufftExecC2R");
    find(result.forward_f64, "cufftExecD2Z");
    find(result.inverse_f64, "cufftExecZ2D");
    return result;
  }();
  return functions;
}

void check(cufftResult status, const char* what) {
  if (status != CUFFT_SUCCESS) throw Error("fft_conv: ", what, ": cuFFT says ", static_cast<int>(status));
}

struct Plan {
  cufftHandle handle = 0;
  size_t work_bytes = 0;
  bool recorded = false;  // in a graph, which goes on to use its tables
  int64_t used = 0;       // the time of the last use, counted in uses
};

// A ragged batch has sizes and row counts without end; plans beyond these make room for new ones.
constexpr size_t kMostPlans = 512;

using Key = std::tuple<int, cufftType, int64_t, int64_t>;  // GPU, transform, size, rows

struct Plans {
  std::mutex mutex;
  std::map<Key, Plan> all;
  int64_t uses = 0;

  Plan& get(const Key& key, Stream stream) {
    if (const auto found = all.find(key); found != all.end()) return found->second;
    const auto& [gpu, type, size, rows] = key;
    if (all.size() >= kMostPlans && !recording(Device::cuda(gpu))) drop_oldest();
    Plan plan;
    check(fft().create(&plan.handle), "make a plan");
    const bool inverse = type == CUFFT_C2R || type == CUFFT_Z2D;
    long long n = size, real = size + 2, complex = size / 2 + 1;
    cufftResult status = fft().set_auto_allocation(plan.handle, 0);
    if (status == CUFFT_SUCCESS)
      status = fft().make_plan(plan.handle, 1, &n, inverse ? &complex : &real, 1, inverse ? complex : real,
                               inverse ? &real : &complex, 1, inverse ? real : complex, type, rows, &plan.work_bytes);
    if (status == CUFFT_SUCCESS) status = fft().set_stream(plan.handle, stream);
    if (status != CUFFT_SUCCESS) {
      fft().destroy(plan.handle);
      check(status, "make a plan");
    }
    return all[key] = plan;
  }

 private:
  void drop_oldest() {
    auto oldest = all.end();
    for (auto at = all.begin(); at != all.end(); ++at)
      if (!at->second.recorded && (oldest == all.end() || at->second.used < oldest->second.used)) oldest = at;
    if (oldest == all.end()) return;
    // What is queued may still read its tables.
    synchronize(Device::cuda(std::get<0>(oldest->first)));
    fft().destroy(oldest->second.handle);
    all.erase(oldest);
  }
};

// `execute(handle, pointer)`.
template <class Execute>
void run(const Tensor& data, cufftType type, Stream stream, const Execute& execute) {
  static auto* plans = new Plans;  // never destroyed: the driver may be gone before
  const int64_t rows = data.size(0), size = data.size(1) - 2;
  if (rows == 0) return;
  const std::lock_guard lock(plans->mutex);
  Plan& plan = plans->get({data.device().index, type, size, rows}, stream);
  plan.used = ++plans->uses;
  plan.recorded |= recording(data.device());
  const Tensor work =
      Tensor::empty({static_cast<int64_t>(plan.work_bytes / sizeof(float)) + 1}, DType::f32, data.device());
  check(fft().set_work_area(plan.handle, work.raw()), "set the work area");
  check(execute(plan.handle, data.raw()), "transform");
}

}  // namespace

void fourier_transform(const Tensor& data, Stream stream) {
  if (data.dtype() == DType::f64)
    return run(data, CUFFT_D2Z, stream, [](cufftHandle plan, void* at) {
      return fft().forward_f64(plan, static_cast<cufftDoubleReal*>(at), static_cast<cufftDoubleComplex*>(at));
    });
  run(data, CUFFT_R2C, stream, [](cufftHandle plan, void* at) {
    return fft().forward_f32(plan, static_cast<cufftReal*>(at), static_cast<cufftComplex*>(at));
  });
}

void inverse_fourier_transform(const Tensor& data, Stream stream) {
  if (data.dtype() == DType::f64)
    return run(data, CUFFT_Z2D, stream, [](cufftHandle plan, void* at) {
      return fft().inverse_f64(plan, static_cast<cufftDoubleComplex*>(at), static_cast<cufftDoubleReal*>(at));
    });
  run(data, CUFFT_C2R, stream, [](cufftHandle plan, void* at) {
    return fft().inverse_f32(plan, static_cast<cufftComplex*>(at), static_cast<cufftReal*>(at));
  });
}

int64_t fourier_size(int64_t least) {
  int64_t quarter = 2;
  while (7 * quarter < least) quarter *= 2;
  for (int64_t quarters = 4;; ++quarters)
    if (quarters * quarter >= least) return quarters * quarter;
}

}  // namespace ssm::cuda
