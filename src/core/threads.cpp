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

// A loop is a round. The ticket holds the round's number and the next task nobody has taken, in one word, so that a
// worker can only take a task of the round it looks at. The caller waits for tasks, not for workers: a worker that the
// system has put aside, or that wakes too late, finds a ticket of another round and has delayed nobody.
struct Threads::Pool {
  static constexpr int kTaskBits = 40;
  static constexpr uint64_t kTaskMask = (uint64_t{1} << kTaskBits) - 1;

  std::vector<std::thread> workers;
  std::mutex mutex;
  std::condition_variable wake;
  std::atomic<uint64_t> ticket{kTaskMask};  // round << kTaskBits | next task; kTaskMask: nothing to take
  std::atomic<int64_t> tasks{0};            // of this round
  std::atomic<int64_t> finished{0};
  std::atomic<int> sleepers{0};
  std::atomic<bool> stop{false}, failed{false};
  // Written before the round is announced; a task's holder may read them, since the round cannot end without it.
  Call call = nullptr;
  const void* body = nullptr;
  std::exception_ptr failure;  // guarded by mutex

  uint64_t round() const { return ticket.load(std::memory_order_acquire) >> kTaskBits; }

  void work(int worker) {
    uint64_t seen = ticket.load(std::memory_order_acquire);
    while (static_cast<int64_t>(seen & kTaskMask) < tasks.load(std::memory_order_acquire)) {
      // The exchange fails if the round is over by now, whatever was read of it.
      if (!ticket.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel)) continue;
      if (!failed.load(std::memory_order_relaxed)) {
        try {
          call(body, static_cast<int64_t>(seen & kTaskMask), worker);
        } catch (...) {
          const std::lock_guard lock(mutex);
          if (!failure) failure = std::current_exception();
          failed.store(true, std::memory_order_relaxed);
        }
      }
      finished.fetch_add(1, std::memory_order_release);
      seen = ticket.load(std::memory_order_acquire);
    }
  }

  void serve(int worker) {
    uint64_t seen = 0;
    while (true) {
      for (int spin = 0; spin < kSpins && round() == seen; ++spin) relax();
      if (round() == seen) {
        std::unique_lock lock(mutex);
        sleepers.fetch_add(1);
        wake.wait(lock, [&] { return round() != seen; });
        sleepers.fetch_sub(1);
      }
      seen = round();
      if (stop.load(std::memory_order_relaxed)) return;
      work(worker);
    }
  }

  void announce() {
    {
      // The lock closes the gap between a worker's last look at the round and its going to sleep.
      const std::lock_guard lock(mutex);
      ticket.store((round() + 1) << kTaskBits, std::memory_order_release);
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
  // A worker may still be looking for tasks of the last loop: the last announcement must not look like one to it.
  pool_->tasks.store(0, std::memory_order_relaxed);
  pool_->stop.store(true, std::memory_order_relaxed);
  pool_->announce();
  for (auto& worker : pool_->workers) worker.join();
}

int Threads::count() const { return static_cast<int>(pool_->workers.size()) + 1; }

void Threads::run(int64_t tasks, Call call, const void* body) {
  if (tasks <= 1 || pool_->workers.empty()) {
    for (int64_t task = 0; task < tasks; ++task) call(body, task, 0);
    return;
  }
  require(tasks < (int64_t{1} << Pool::kTaskBits), "a loop of ", tasks, " tasks; at most 2^", Pool::kTaskBits);
  Pool& pool = *pool_;
  pool.call = call;
  pool.body = body;
  pool.finished.store(0, std::memory_order_relaxed);
  pool.tasks.store(tasks, std::memory_order_relaxed);
  pool.announce();
  pool.work(0);
  // Tasks are short and end at about the same time; after a while the core may be of more use to whoever holds one.
  for (int spin = 0; pool.finished.load(std::memory_order_acquire) != tasks; ++spin)
    spin < kSpins ? relax() : std::this_thread::yield();
  // The round is closed before the next one's number of tasks is set: seen together with this round's ticket, a larger
  // number would let a late worker take a task that was never announced.
  pool.ticket.store(pool.round() << Pool::kTaskBits | Pool::kTaskMask, std::memory_order_release);
  if (pool.failed.exchange(false)) {
    const std::lock_guard lock(pool.mutex);
    std::rethrow_exception(std::exchange(pool.failure, nullptr));
  }
}

}  // namespace ssm
