#include "core/threads.h"

#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "core/error.h"

namespace ssm {
namespace {

// Decoding one token runs some 200 short loops a few microseconds apart. Waking a sleeping thread costs about 30 us,
// so a worker first looks for work this many times (about 50 us) before it sleeps.
constexpr int kSpins = 20000;
constexpr int kMostThreads = 1024;

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int usable_cores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  return static_cast<int>(std::thread::hardware_concurrency());
}

}  // namespace

struct Threads::Pool {
  std::vector<std::thread> workers;
  std::mutex mutex;
  std::condition_variable wake;
  std::atomic<uint64_t> round{0};  // a new value announces a loop (or, with stop, the end)
  std::atomic<int> busy{0};        // workers that have not finished this round
  std::atomic<int64_t> next{0};    // the next task nobody has taken
  std::atomic<int> sleepers{0};
  bool stop = false;
  int64_t tasks = 0;
  Call call = nullptr;
  const void* body = nullptr;
  std::exception_ptr failure;  // guarded by mutex

  void work(int worker) {
    try {
      for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) call(body, task, worker);
    } catch (...) {
      next.store(tasks, std::memory_order_relaxed);
      const std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  }

  void serve(int worker) {
    uint64_t seen = 0;
    while (true) {
      for (int spin = 0; spin < kSpins && round.load(std::memory_order_acquire) == seen; ++spin) relax();
      if (round.load(std::memory_order_acquire) == seen) {
        std::unique_lock lock(mutex);
        sleepers.fetch_add(1);
        wake.wait(lock, [&] { return round.load(std::memory_order_acquire) != seen; });
        sleepers.fetch_sub(1);
      }
      seen = round.load(std::memory_order_acquire);
      if (stop) return;
      work(worker);
      busy.fetch_sub(1, std::memory_order_release);
    }
  }

  void announce() {
    {
      // The lock closes the gap between a worker's last look at `round` and its going to sleep.
      const std::lock_guard lock(mutex);
      round.fetch_add(1, std::memory_order_release);
    }
    if (sleepers.load() > 0) wake.notify_all();
  }
};

Threads::Threads(int count) : pool_(std::make_unique<Pool>()) {
  require(count >= 0 && count <= kMostThreads, "--threads ", count, ": expected 1 to ", kMostThreads,
          ", or 0 for one a core");
  if (count == 0) count = usable_cores();
  for (int i = 1; i < count; ++i) pool_->workers.emplace_back([pool = pool_.get(), i] { pool->serve(i); });
}

Threads::~Threads() {
  pool_->stop = true;
  pool_->announce();
  for (auto& worker : pool_->workers) worker.join();
}

int Threads::count() const { return static_cast<int>(pool_->workers.size()) + 1; }

void Threads::run(int64_t tasks, Call call, const void* body) {
  if (tasks <= 1 || pool_->workers.empty()) {
    for (int64_t task = 0; task < tasks; ++task) call(body, task, 0);
    return;
  }
  Pool& pool = *pool_;
  pool.tasks = tasks;
  pool.call = call;
  pool.body = body;
  pool.next.store(0, std::memory_order_relaxed);
  pool.busy.store(static_cast<int>(pool.workers.size()), std::memory_order_relaxed);
  pool.announce();
  pool.work(0);
  // A loop of many short tasks ends for all at about the same time; give the core away if somebody else needs it.
  for (int spin = 0; pool.busy.load(std::memory_order_acquire) != 0; ++spin)
    spin < kSpins ? relax() : std::this_thread::yield();
  if (pool.failure) std::rethrow_exception(std::exchange(pool.failure, nullptr));
}

}  // namespace ssm
