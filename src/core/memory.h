// The caching allocator behind every tensor. A freed block goes to a free list of its size class and is handed out
// again, so a training step after the first asks the system for nothing. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>

namespace ssm {

struct MemoryStats {
  int64_t in_use = 0;        // bytes handed out now, in size classes
  int64_t peak = 0;          // the most since reset_memory_peak()
  int64_t cached = 0;        // bytes on the free lists
  int64_t system_calls = 0;  // allocations asked of the system since the start
};

// 64-byte aligned, uninitialised; freed into the cache by the deleter. Throws Error when the system has no more.
std::shared_ptr<std::byte> allocate_bytes(int64_t bytes);

MemoryStats memory_stats();
void reset_memory_peak();
void release_cached_memory();

}  // namespace ssm
