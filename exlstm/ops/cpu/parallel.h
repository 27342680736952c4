// Work on torch's threads.

#pragma once

#include <cstdint>

// torch's own thread pool, by its stable C interface; its address comes from Python. Null: the calling thread alone.
typedef int32_t (*ParallelFor)(int64_t, int64_t, int64_t, void (*)(int64_t, int64_t, void*), void*);

namespace {

// Call `work(begin, end)` for parts of the tasks, of `grain` tasks at least, on torch's threads.
template <class Work>
inline void in_parallel(ParallelFor parallel_for, int64_t tasks, int64_t grain, const Work& work) {
  const auto some = [](int64_t begin, int64_t end, void* pointer) { (*static_cast<const Work*>(pointer))(begin, end); };
  if (parallel_for && tasks > grain)
    parallel_for(0, tasks, grain, some, const_cast<void*>(static_cast<const void*>(&work)));
  else
    some(0, tasks, const_cast<void*>(static_cast<const void*>(&work)));
}

// Call `work(task)` for every task.
template <class Work>
inline void for_tasks(ParallelFor parallel_for, int64_t tasks, const Work& work) {
  in_parallel(parallel_for, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) work(task);
  });
}

}  // namespace
