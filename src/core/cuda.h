// The GPU as the rest of the house sees it: devices, memory, copies, graphs. No CUDA header is needed to include this;
// in a build without CUDA nothing of it is defined, and callers stand behind `if constexpr (kHasCuda)`.
//
// Each GPU has one stream. Everything is queued on it in program order and nothing waits but what says so, so memory
// given back may be handed out again at once: whoever gets it is queued behind.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "core/device.h"
#include "core/memory.h"
#include "core/tensor.h"

struct CUstream_st;

namespace ssm::cuda {

using Stream = CUstream_st*;  // cudaStream_t

int device_count();           // 0 when there is no driver or no GPU
std::string why_no_device();  // one line, when device_count() is 0
Stream stream(const Device& device);
void synchronize(const Device& device);  // until all that is queued is done
// "NVIDIA H200, compute capability 9.0, 132 multiprocessors, 139.8 GiB, driver 13.0, runtime 13.0"
std::string describe(const Device& device);
int multiprocessors(const Device& device);
int compute_capability(const Device& device);  // 90 is 9.0
int64_t memory_bytes(const Device& device);    // of the whole card

// What core/memory.h does on a GPU.
std::shared_ptr<std::byte> allocate_bytes(int64_t bytes, const Device& device);
MemoryStats memory_stats(const Device& device);
void reset_memory_peak(const Device& device);
void release_cached_memory(const Device& device);

// Host memory that the GPU reads and writes directly: for numbers that come back while the host goes on.
std::shared_ptr<std::byte> allocate_pinned(int64_t bytes);

// Bytes from and to the host. upload returns when `from` may be changed; download when the bytes are there.
void upload(void* to, const void* from, int64_t bytes, const Device& device);
void download(void* to, const void* from, int64_t bytes, const Device& device);
// The same into pinned memory, queued: there once an Event recorded after it was reached.
void queue_download(void* pinned, const void* from, int64_t bytes, const Device& device);
// On the GPU, queued.
void copy_bytes(void* to, const void* from, int64_t bytes, const Device& device);
void fill_zero_bytes(void* to, int64_t bytes, const Device& device);

// Tensors of one GPU, any strides: what Tensor's functions of these names do there. Queued.
void copy(const Tensor& to, const Tensor& from);  // converts between float types
void fill_zero(const Tensor& tensor);
void add(const Tensor& to, const Tensor& from);  // f32, bf16 or f16; the sum is rounded once

// Marks a point of a stream's queue.
class Event {
 public:
  Event();
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record(Stream stream);
  void wait() const;                       // the host, until the point is reached
  double since(const Event& begin) const;  // seconds; both reached

 private:
  void* event_;
};

// A piece of work recorded once, without doing it, and queued any number of times with one call, on the same memory.
// Whoever records has done the like before, so that what it caches is there: recorded work cannot ask anything of the
// host, so no downloads; an upload brings at every launch what it was given when it was recorded. Memory that the work
// allocates stays its own while the graph lives; with `shares`, it is taken from that graph's: what one of the two
// leaves there and nobody holds, the other overwrites.
class Graph {
 public:
  Graph(const Device& device, const std::function<void()>& work, const Graph* shares = nullptr);
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  void launch();
  int64_t kernels() const { return kernels_; }

 private:
  struct Memory;
  Device device_;
  std::shared_ptr<Memory> memory_;
  void* graph_ = nullptr;
  int64_t kernels_ = 0;
};
bool recording(const Device& device);  // inside a Graph's constructor

}  // namespace ssm::cuda
