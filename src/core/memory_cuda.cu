// The allocator of device_memory.cuh, and one of it for each GPU.
#include <algorithm>
#include <vector>

#include "core/cuda_kernel.cuh"
#include "core/device_memory.cuh"

namespace ssm::cuda {
namespace {

constexpr int64_t kAlignment = 512;
constexpr int64_t kSmall = int64_t{1} << 20;           // blocks up to this share segments of
constexpr int64_t kSmallSegment = int64_t{2} << 20;    // this size,
constexpr int64_t kMedium = int64_t{10} << 20;         // blocks up to this share segments of
constexpr int64_t kMediumSegment = int64_t{20} << 20;  // this size; larger ones begin their own
constexpr int64_t kGranularity = int64_t{2} << 20;     // of what the driver gives

int64_t round_up(int64_t bytes, int64_t step) { return (bytes + step - 1) / step * step; }

struct Pools {
  std::shared_ptr<MemoryPool> own, active;
};

Pools& pools(const Device& device) {
  static auto* mutex = new std::mutex;
  static auto* all = new std::map<int, Pools>;
  const std::lock_guard lock(*mutex);
  Pools& mine = (*all)[device.index];
  if (!mine.own) mine.own = std::make_shared<MemoryPool>(device);
  return mine;
}

}  // namespace

MemoryPool::~MemoryPool() {
  for (const auto& [begin, block] : blocks_)
    if (block.first) cudaFree(begin);
}

MemoryPool::Blocks::iterator MemoryPool::add_segment(int64_t bytes) {
  const int64_t size = bytes <= kSmall    ? kSmallSegment
                       : bytes <= kMedium ? kMediumSegment
                                          : round_up(bytes, kGranularity);
  void* begin = nullptr;
  check(cudaSetDevice(device_.index), "choose the GPU");
  if (cudaMalloc(&begin, static_cast<size_t>(size)) != cudaSuccess) {
    cudaGetLastError();
    return blocks_.end();
  }
  ++stats_.system_calls;
  stats_.cached += size;
  auto* first = static_cast<std::byte*>(begin);
  free_.insert({size, first});
  return blocks_.insert({first, {first, size, true, true}}).first;
}

std::shared_ptr<std::byte> MemoryPool::allocate(int64_t bytes) {
  const std::lock_guard lock(mutex_);
  const int64_t size = round_up(std::max<int64_t>(bytes, 1), kAlignment);
  const auto fit = free_.lower_bound({size, nullptr});
  // A large segment is not broken for a small block: it would keep the next large one from fitting.
  const bool wasteful = fit != free_.end() && size <= kSmall && fit->first > kMediumSegment;
  auto found = fit == free_.end() || wasteful ? add_segment(size) : blocks_.find(fit->second);
  if (found == blocks_.end() && wasteful) found = blocks_.find(fit->second);
  if (found == blocks_.end()) return nullptr;

  Block& block = found->second;
  free_.erase({block.bytes, block.begin});
  if (block.bytes - size >= kAlignment) {
    const Block rest{block.begin + size, block.bytes - size, true, false};
    block.bytes = size;
    blocks_.insert({rest.begin, rest});
    free_.insert({rest.bytes, rest.begin});
  }
  block.free = false;
  stats_.in_use += block.bytes;
  stats_.cached -= block.bytes;
  stats_.peak = std::max(stats_.peak, stats_.in_use);
  return {block.begin, [pool = shared_from_this()](std::byte* begin) { pool->give_back(begin); }};
}

void MemoryPool::give_back(std::byte* begin) {
  const std::lock_guard lock(mutex_);
  auto at = blocks_.find(begin);
  at->second.free = true;
  stats_.in_use -= at->second.bytes;
  stats_.cached += at->second.bytes;
  const auto join = [this](Blocks::iterator left, Blocks::iterator right) {  // right is not on the free list
    left->second.bytes += right->second.bytes;
    blocks_.erase(right);
  };
  const auto next = std::next(at);
  if (next != blocks_.end() && next->second.free && !next->second.first) {
    free_.erase({next->second.bytes, next->first});
    join(at, next);
  }
  if (!at->second.first) {
    const auto before = std::prev(at);
    if (before->second.free) {
      free_.erase({before->second.bytes, before->first});
      join(before, at);
      at = before;
    }
  }
  free_.insert({at->second.bytes, at->first});
}

int64_t MemoryPool::release_unused() {
  const std::lock_guard lock(mutex_);
  int64_t released = 0;
  for (auto at = blocks_.begin(); at != blocks_.end();) {
    const auto next = std::next(at);
    const bool whole = at->second.first && (next == blocks_.end() || next->second.first);
    if (whole && at->second.free) {
      free_.erase({at->second.bytes, at->first});
      cudaFree(at->first);
      released += at->second.bytes;
      blocks_.erase(at);
    }
    at = next;
  }
  stats_.cached -= released;
  return released;
}

MemoryStats MemoryPool::stats() const {
  const std::lock_guard lock(mutex_);
  return stats_;
}

void MemoryPool::reset_peak() {
  const std::lock_guard lock(mutex_);
  stats_.peak = stats_.in_use;
}

void MemoryPool::count_use(int64_t bytes) {
  const std::lock_guard lock(mutex_);
  stats_.peak = std::max(stats_.peak, stats_.in_use + bytes);
}

void count_use(const Device& device, const MemoryPool& pool) { pools(device).own->count_use(pool.stats().peak); }

void use_pool(const Device& device, std::shared_ptr<MemoryPool> pool) { pools(device).active = std::move(pool); }

std::shared_ptr<std::byte> allocate_bytes(int64_t bytes, const Device& device) {
  require(bytes >= 0 && bytes <= (int64_t{1} << 46), "cannot allocate ", bytes, " bytes for a tensor");
  const Pools& mine = pools(device);
  MemoryPool& pool = mine.active ? *mine.active : *mine.own;
  auto block = pool.allocate(bytes);
  if (!block && mine.own->release_unused() > 0) block = pool.allocate(bytes);
  require(block != nullptr, name_of(device), ": out of memory: ", bytes, " bytes for one tensor (", pool.stats().in_use,
          " in use of ", memory_bytes(device), "); use a smaller batch, length or model");
  return block;
}

MemoryStats memory_stats(const Device& device) { return pools(device).own->stats(); }
void reset_memory_peak(const Device& device) { pools(device).own->reset_peak(); }
void release_cached_memory(const Device& device) { pools(device).own->release_unused(); }

}  // namespace ssm::cuda
