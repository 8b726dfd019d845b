// Devices, streams, events, graphs and the crossing between the host's memory and a GPU's.
#include <algorithm>
#include <cstring>
#include <mutex>
#include <vector>

#include "core/cuda.h"
#include "core/cuda_kernel.cuh"
#include "core/device_memory.cuh"

namespace ssm::cuda {
namespace {

constexpr int64_t kStagingBytes = int64_t{8} << 20;

// Pinned buffers that uploads pass through: filled by the host, read by the copy engine, free again when their event
// has come.
class Staging {
 public:
  void upload(std::byte* to, const std::byte* from, int64_t bytes, Stream stream) {
    const std::lock_guard lock(mutex_);
    for (int64_t done = 0; done < bytes; done += kStagingBytes) {
      const int64_t piece = std::min(kStagingBytes, bytes - done);
      Buffer& buffer = take(piece);
      std::memcpy(buffer.memory.get(), from + done, static_cast<size_t>(piece));
      check(cudaMemcpyAsync(to + done, buffer.memory.get(), static_cast<size_t>(piece), cudaMemcpyHostToDevice, stream),
            "copy to the GPU");
      check(cudaEventRecord(buffer.read, stream), "copy to the GPU");
    }
  }

 private:
  struct Buffer {
    std::shared_ptr<std::byte> memory;
    int64_t bytes;
    cudaEvent_t read;
  };

  Buffer& take(int64_t bytes) {
    constexpr size_t kMost = 16;  // then an upload waits for an earlier one
    for (Buffer& one : buffers_)
      if (one.bytes >= bytes && cudaEventQuery(one.read) == cudaSuccess) return one;
    if (buffers_.size() >= kMost) {
      next_ = (next_ + 1) % buffers_.size();
      Buffer& oldest = buffers_[next_];
      check(cudaEventSynchronize(oldest.read), "copy to the GPU");
      if (oldest.bytes < bytes) {
        oldest.memory = allocate_pinned(kStagingBytes);
        oldest.bytes = kStagingBytes;
      }
      return oldest;
    }
    const int64_t size = bytes <= 64 * 1024 ? 64 * 1024 : kStagingBytes;
    Buffer fresh{.memory = allocate_pinned(size), .bytes = size, .read = nullptr};
    check(cudaEventCreateWithFlags(&fresh.read, cudaEventDisableTiming), "copy to the GPU");
    buffers_.push_back(fresh);
    return buffers_.back();
  }

  std::mutex mutex_;
  std::vector<Buffer> buffers_;
  size_t next_ = 0;
};

// One GPU, made when first used. Never destroyed: tensors in static storage may outlive any order of destruction, and
// the driver takes everything back when the process ends.
struct Gpu {
  cudaDeviceProp properties{};
  cudaStream_t stream = nullptr;
  Staging staging;
  std::vector<std::shared_ptr<std::byte>>* recorded = nullptr;  // pinned: what the graph under way will upload
};

struct Driver {
  int count = 0;  // of the GPUs that kernels were compiled for; the driver numbers the fastest first
  std::string problem;
  std::vector<std::unique_ptr<Gpu>> gpus;
  std::mutex mutex;

  Driver() {
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (status != cudaSuccess) {
      count = 0;
      problem = status == cudaErrorInsufficientDriver || status == cudaErrorNoDevice
                    ? "no usable NVIDIA driver or GPU was found"
                    : text("the NVIDIA driver says ", cudaGetErrorString(status));
      cudaGetLastError();
    } else if (count == 0) {
      problem = "no NVIDIA GPU was found";
    } else {
      keep_what_runs_our_kernels();
    }
    gpus.resize(static_cast<size_t>(count));
  }

 private:
  // Code for an architecture also runs on later ones, so the earliest decides.
  void keep_what_runs_our_kernels() {
    const int earliest = std::min({__CUDA_ARCH_LIST__}) / 10;  // 80, 90, ...
    for (int i = 0; i < count; ++i) {
      int major = 0, minor = 0;
      check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, i), "ask the driver");
      check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, i), "ask the driver");
      if (10 * major + minor >= earliest) continue;
      if (i == 0)
        problem = text("the GPU has compute capability ", major, ".", minor,
                       ", and the kernels in this program were compiled for ", earliest / 10, ".", earliest % 10,
                       " and later (-DCMAKE_CUDA_ARCHITECTURES=", 10 * major + minor, " compiles them for this GPU)");
      count = i;
    }
  }
};

Driver& driver() {
  static auto* instance = new Driver;
  return *instance;
}

Gpu& gpu(const Device& device) {
  Driver& all = driver();
  const auto index = static_cast<size_t>(device.index);
  require(device.is_cuda() && index < all.gpus.size(), name_of(device), ": ",
          all.count == 0 ? all.problem : text("this machine has ", all.count, " GPU(s)"));
  // A thread's current device is per thread: set by every call.
  check(cudaSetDevice(device.index), "choose the GPU");
  const std::lock_guard lock(all.mutex);
  auto& one = all.gpus[index];
  if (!one) {
    one = std::make_unique<Gpu>();
    check(cudaGetDeviceProperties(&one->properties, device.index), "open the GPU");
    check(cudaStreamCreateWithFlags(&one->stream, cudaStreamNonBlocking), "open the GPU");
  }
  return *one;
}

}  // namespace

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // clears what is not sticky
  throw Error(text(what, ": the GPU reports ", cudaGetErrorString(status), " (", cudaGetErrorName(status), ")"));
}

int device_count() { return driver().count; }
std::string why_no_device() { return driver().problem; }
Stream stream(const Device& device) { return gpu(device).stream; }
void synchronize(const Device& device) { check(cudaStreamSynchronize(stream(device)), "wait for the GPU"); }
int multiprocessors(const Device& device) { return gpu(device).properties.multiProcessorCount; }
int compute_capability(const Device& device) {
  return 10 * gpu(device).properties.major + gpu(device).properties.minor;
}
int64_t memory_bytes(const Device& device) { return static_cast<int64_t>(gpu(device).properties.totalGlobalMem); }

LaunchLimits launch_limits() {
  int current = 0;
  check(cudaGetDevice(&current), "ask for the current GPU");
  const cudaDeviceProp& properties = gpu(Device::cuda(current)).properties;
  return {.shared = properties.sharedMemPerBlockOptin, .early = properties.major >= 9};
}

std::string describe(const Device& device) {
  const cudaDeviceProp& properties = gpu(device).properties;
  int driver_version = 0, runtime_version = 0;
  check(cudaDriverGetVersion(&driver_version), "ask the driver");
  check(cudaRuntimeGetVersion(&runtime_version), "ask the driver");
  const auto version = [](int number) { return text(number / 1000, ".", number % 1000 / 10); };
  const double gib = static_cast<double>(properties.totalGlobalMem) / (1 << 30);
  return text(properties.name, ", compute capability ", properties.major, ".", properties.minor, ", ",
              properties.multiProcessorCount, " multiprocessors, ", static_cast<int64_t>(gib), " GiB, driver ",
              version(driver_version), ", runtime ", version(runtime_version));
}

std::shared_ptr<std::byte> allocate_pinned(int64_t bytes) {
  void* block = nullptr;
  check(cudaHostAlloc(&block, static_cast<size_t>(std::max<int64_t>(bytes, 1)), cudaHostAllocPortable),
        "allocate pinned host memory");
  return {static_cast<std::byte*>(block), [](std::byte* p) { cudaFreeHost(p); }};
}

void upload(void* to, const void* from, int64_t bytes, const Device& device) {
  Gpu& target = gpu(device);
  if (target.recorded && bytes > 0) {
    const auto& kept = target.recorded->emplace_back(allocate_pinned(bytes));
    std::memcpy(kept.get(), from, static_cast<size_t>(bytes));
    return check(cudaMemcpyAsync(to, kept.get(), static_cast<size_t>(bytes), cudaMemcpyHostToDevice, target.stream),
                 "copy to the GPU");
  }
  target.staging.upload(static_cast<std::byte*>(to), static_cast<const std::byte*>(from), bytes, target.stream);
}

void download(void* to, const void* from, int64_t bytes, const Device& device) {
  const Gpu& source = gpu(device);
  require(!source.recorded, "copy from the GPU: inside a recording, where nothing has been computed yet");
  check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, source.stream),
        "copy from the GPU");
  synchronize(device);
}

void queue_download(void* pinned, const void* from, int64_t bytes, const Device& device) {
  check(cudaMemcpyAsync(pinned, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream(device)),
        "copy from the GPU");
}

void copy_bytes(void* to, const void* from, int64_t bytes, const Device& device) {
  check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, stream(device)),
        "copy on the GPU");
}

void fill_zero_bytes(void* to, int64_t bytes, const Device& device) {
  check(cudaMemsetAsync(to, 0, static_cast<size_t>(bytes), stream(device)), "fill with zeros");
}

Event::Event() {
  cudaEvent_t event = nullptr;
  check(cudaEventCreate(&event), "make an event");
  event_ = event;
}
Event::~Event() { cudaEventDestroy(static_cast<cudaEvent_t>(event_)); }
void Event::record(Stream stream) { check(cudaEventRecord(static_cast<cudaEvent_t>(event_), stream), "mark a time"); }
void Event::wait() const { check(cudaEventSynchronize(static_cast<cudaEvent_t>(event_)), "wait for the GPU"); }
double Event::since(const Event& begin) const {
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, static_cast<cudaEvent_t>(begin.event_), static_cast<cudaEvent_t>(event_)),
        "read a time");
  return static_cast<double>(milliseconds) / 1e3;
}

bool recording(const Device& device) { return gpu(device).recorded != nullptr; }

struct Graph::Memory {
  std::shared_ptr<MemoryPool> pool;
  std::vector<std::shared_ptr<std::byte>> uploads;
};

Graph::Graph(const Device& device, const std::function<void()>& work, const Graph* shares)
    : device_(device), memory_(std::make_shared<Memory>()) {
  Gpu& target = gpu(device);
  require(!target.recorded, "a recording inside a recording");
  memory_->pool = shares ? shares->memory_->pool : std::make_shared<MemoryPool>(device);
  cudaGraph_t graph = nullptr;
  const auto end = [&] {
    target.recorded = nullptr;
    use_pool(device, nullptr);
    return cudaStreamEndCapture(target.stream, &graph);
  };
  use_pool(device, memory_->pool);
  target.recorded = &memory_->uploads;
  cudaError_t status = cudaStreamBeginCapture(target.stream, cudaStreamCaptureModeRelaxed);
  if (status == cudaSuccess) {
    try {
      work();
    } catch (...) {
      if (end() == cudaSuccess && graph) cudaGraphDestroy(graph);
      cudaGetLastError();
      throw;
    }
  }
  const cudaError_t ended = end();
  check(status == cudaSuccess ? ended : status, "record a graph");
  size_t nodes = 0;
  check(cudaGraphGetNodes(graph, nullptr, &nodes), "record a graph");
  kernels_ = static_cast<int64_t>(nodes);
  cudaGraphExec_t runnable = nullptr;
  status = cudaGraphInstantiate(&runnable, graph, 0);
  cudaGraphDestroy(graph);
  check(status, "record a graph");
  graph_ = runnable;
}

Graph::~Graph() {
  if (!graph_) return;
  cudaStreamSynchronize(gpu(device_).stream);
  cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph_));
}

void Graph::launch() {
  count_use(device_, *memory_->pool);
  check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph_), stream(device_)), "run a graph");
}

}  // namespace ssm::cuda
