// The caching allocator of a GPU: large segments from the driver, cut into blocks, best fit, neighbours joined again
// when both are free. All work is on one stream, so a block that is given back can be handed out at once.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <set>

#include "core/device.h"
#include "core/memory.h"

namespace ssm::cuda {

class MemoryPool : public std::enable_shared_from_this<MemoryPool> {
 public:
  explicit MemoryPool(const Device& device) : device_(device) {}
  ~MemoryPool();  // gives all segments back to the driver; nothing may be using them
  MemoryPool(const MemoryPool&) = delete;
  MemoryPool& operator=(const MemoryPool&) = delete;

  std::shared_ptr<std::byte> allocate(int64_t bytes);  // null when the driver has no more
  int64_t release_unused();                            // segments without a block in use, to the driver; bytes
  MemoryStats stats() const;
  void reset_peak();
  void count_use(int64_t bytes);  // in the peak: of memory that is somebody else's, in use beside this one's

 private:
  struct Block {
    std::byte* begin;
    int64_t bytes;
    bool free;
    bool first;  // of its segment
  };
  using Blocks = std::map<std::byte*, Block>;

  Blocks::iterator add_segment(int64_t bytes);
  void give_back(std::byte* begin);

  mutable std::mutex mutex_;
  Device device_;
  Blocks blocks_;                                  // by address
  std::set<std::pair<int64_t, std::byte*>> free_;  // by size
  MemoryStats stats_;
};

// Where allocate_bytes takes from: `pool`, or the GPU's own when null.
void use_pool(const Device& device, std::shared_ptr<MemoryPool> pool);
// Counts a graph's memory in the GPU's peak: it is in use while the graph runs.
void count_use(const Device& device, const MemoryPool& pool);

}  // namespace ssm::cuda
