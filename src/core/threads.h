// A pool of threads for loops over independent tasks. The caller takes part, so Threads(1) starts none.
// What a task computes must depend on its number alone, never on the worker: then results do not depend on the
// number of threads.
#pragma once

#include <cstdint>
#include <memory>

namespace ssm {

class Threads {
 public:
  explicit Threads(int count = 0);  // 0: one a core this process may use
  ~Threads();
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

  int count() const;

  // Calls body(task, worker) for each task in [0, tasks), each once, worker in [0, count()); returns when all are
  // done. An exception of a task is thrown here after the others ended. Not to be called from inside a task.
  template <class Body>
  void parallel(int64_t tasks, const Body& body) {
    run(
        tasks, [](const void* f, int64_t task, int worker) { (*static_cast<const Body*>(f))(task, worker); }, &body);
  }

 private:
  using Call = void (*)(const void* body, int64_t task, int worker);
  void run(int64_t tasks, Call call, const void* body);
  struct Pool;
  std::unique_ptr<Pool> pool_;
};

}  // namespace ssm
