#include "core/threads.h"

#include <gtest/gtest.h>

#include <atomic>
#include <numeric>
#include <vector>

#include "core/error.h"

namespace ssm {
namespace {

TEST(Threads, EveryTaskRunsOnceWhateverTheCounts) {
  for (const int count : {1, 2, 3, 8}) {
    Threads threads(count);
    EXPECT_EQ(threads.count(), count);
    for (const int64_t tasks : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(tasks));
      threads.parallel(tasks, [&](int64_t task, int worker) {
        EXPECT_GE(worker, 0);
        EXPECT_LT(worker, count);
        runs[static_cast<size_t>(task)].fetch_add(1);
      });
      for (const auto& one : runs) EXPECT_EQ(one.load(), 1);
    }
  }
}

TEST(Threads, ManyShortLoopsInARow) {
  // More workers than cores, so that some are always late: they must neither take a task twice nor hold a loop up.
  Threads threads(4);
  int64_t total = 0;
  for (int64_t round = 0; round < 20000; ++round) {
    std::atomic<int64_t> sum{0};
    threads.parallel(round % 5, [&](int64_t task, int) { sum.fetch_add(task + 1); });
    total += sum.load();
  }
  EXPECT_EQ(total, 20000 / 5 * (0 + 1 + 3 + 6 + 10));
}

TEST(Threads, AnExceptionArrivesAtTheCallerAndThePoolGoesOn) {
  Threads threads(3);
  for (int round = 0; round < 100; ++round) {
    EXPECT_THROW(threads.parallel(50, [](int64_t task, int) { require(task != 20, "task 20"); }), Error);
    std::atomic<int> runs{0};
    threads.parallel(50, [&](int64_t, int) { runs.fetch_add(1); });
    EXPECT_EQ(runs.load(), 50);
  }
}

TEST(Threads, AbsurdCountsAreErrors) {
  EXPECT_THROW(Threads(-1), Error);
  EXPECT_THROW(Threads(1 << 20), Error);
}

}  // namespace
}  // namespace ssm
