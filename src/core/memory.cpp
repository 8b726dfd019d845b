#include "core/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>

#include "core/cuda.h"
#include "core/error.h"

namespace ssm {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;

struct Cache {
  std::mutex mutex;
  std::map<int64_t, std::vector<std::byte*>> free;  // size class -> blocks
  MemoryStats stats;
};

// Never destroyed: tensors in static storage may outlive any destructor order.
Cache& cache() {
  static auto* instance = new Cache;
  return *instance;
}

// Eight classes to a power of two: at most 12.5 % of a block is padding, and close sizes share blocks.
int64_t size_class(int64_t bytes) {
  constexpr int64_t kSmallest = 64;
  if (bytes <= kSmallest) return kSmallest;
  const int64_t step = std::max(kSmallest, static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(bytes - 1))) / 8);
  return (bytes + step - 1) / step * step;
}

void give_back(std::byte* block, int64_t size) {
  Cache& all = cache();
  const std::lock_guard lock(all.mutex);
  all.free[size].push_back(block);
  all.stats.in_use -= size;
  all.stats.cached += size;
}

std::byte* from_system(int64_t size) {
  const int64_t alignment = size >= kHugePage ? kHugePage : 64;
  const int64_t rounded = (size + alignment - 1) / alignment * alignment;
  auto* block =
      static_cast<std::byte*>(std::aligned_alloc(static_cast<size_t>(alignment), static_cast<size_t>(rounded)));
  // Rows of one activation lie thousands of bytes apart; huge pages keep a scan down a column inside the TLB.
  if (block && size >= kHugePage) madvise(block, static_cast<size_t>(rounded), MADV_HUGEPAGE);
  return block;
}

}  // namespace

std::shared_ptr<std::byte> allocate_bytes(int64_t bytes, const Device& device) {
  if constexpr (kHasCuda)
    if (device.is_cuda()) return cuda::allocate_bytes(bytes, device);
  require(bytes >= 0 && bytes <= (int64_t{1} << 46), "cannot allocate ", bytes, " bytes for a tensor");
  const int64_t size = size_class(bytes);
  Cache& all = cache();
  std::byte* block = nullptr;
  {
    const std::lock_guard lock(all.mutex);
    auto& blocks = all.free[size];
    if (!blocks.empty()) {
      block = blocks.back();
      blocks.pop_back();
      all.stats.cached -= size;
    }
  }
  const bool fresh = block == nullptr;
  if (fresh) {
    block = from_system(size);
    if (!block) {
      release_cached_memory();
      block = from_system(size);
    }
    require(block != nullptr, "out of memory: ", bytes, " bytes for one tensor (", memory_stats().in_use,
            " in use); use a smaller batch, length or model");
  }
  {
    const std::lock_guard lock(all.mutex);
    all.stats.system_calls += fresh;
    all.stats.in_use += size;
    all.stats.peak = std::max(all.stats.peak, all.stats.in_use);
  }
  return {block, [size](std::byte* p) { give_back(p, size); }};
}

MemoryStats memory_stats(const Device& device) {
  if constexpr (kHasCuda)
    if (device.is_cuda()) return cuda::memory_stats(device);
  const std::lock_guard lock(cache().mutex);
  return cache().stats;
}

void reset_memory_peak(const Device& device) {
  if constexpr (kHasCuda)
    if (device.is_cuda()) return cuda::reset_memory_peak(device);
  const std::lock_guard lock(cache().mutex);
  cache().stats.peak = cache().stats.in_use;
}

void release_cached_memory(const Device& device) {
  if constexpr (kHasCuda)
    if (device.is_cuda()) return cuda::release_cached_memory(device);
  Cache& all = cache();
  const std::lock_guard lock(all.mutex);
  for (auto& [size, blocks] : all.free)
    for (std::byte* block : blocks) std::free(block);
  all.free.clear();
  all.stats.cached = 0;
}

}  // namespace ssm
