// The caching allocators behind every tensor, one for the host and one a GPU. A freed block is kept and handed out
// again, so a training step after the first asks the system for nothing. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>

#include "core/device.h"

namespace ssm {

struct MemoryStats {
  int64_t in_use = 0;        // bytes handed out now, as rounded up
  int64_t peak = 0;          // the most since reset_memory_peak()
  int64_t cached = 0;        // bytes kept for the next who asks
  int64_t system_calls = 0;  // allocations asked of the system since the start
};

// 64-byte aligned, uninitialised; freed into the cache by the deleter. Throws Error when the system has no more.
// On a GPU 256-byte aligned, and given back in the order of its stream: what was queued before may still use it.
std::shared_ptr<std::byte> allocate_bytes(int64_t bytes, const Device& device = Device::cpu());

MemoryStats memory_stats(const Device& device = Device::cpu());
void reset_memory_peak(const Device& device = Device::cpu());
void release_cached_memory(const Device& device = Device::cpu());

}  // namespace ssm
