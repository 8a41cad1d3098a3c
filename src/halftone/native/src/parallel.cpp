// Why not a pool of our own: OpenMP's workers spin for a while after each of torch's parallel regions, so a second pool
// would wait for the cores that they hold. GOMP_parallel is the entry that GCC's `#pragma omp parallel` compiles to; GNU's,
// LLVM's and Intel's runtimes all have it. It is looked up in what torch has loaded, so nothing is linked.
#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

namespace halftone {
namespace {

using OpenMpRegion = void (*)(void (*body)(void*), void* data, unsigned num_threads, unsigned flags);

std::atomic<OpenMpRegion> openmp_region{nullptr};

// Parts a thread: a few, so that a thread that is held up does not hold up the rest.
constexpr std::int64_t kPartsPerThread = 4;

struct Work {
    void (*task)(const void*, std::int64_t, std::int64_t);
    const void* context;
    std::int64_t count, part;
    std::atomic<std::int64_t> next{0};

    void run() {
        for (;;) {
            const std::int64_t begin = next.fetch_add(part, std::memory_order_relaxed);
            if (begin >= count) return;
            task(context, begin, std::min(begin + part, count));
        }
    }
};

void run_work(void* work) { static_cast<Work*>(work)->run(); }

}  // namespace

void parallel_for(std::int64_t count, std::int64_t grain, int num_threads,
                  void (*task)(const void* context, std::int64_t begin, std::int64_t end), const void* context) {
    if (count <= 0) return;
    if (num_threads <= 1 || count <= grain) {
        task(context, 0, count);
        return;
    }
    const std::int64_t grains = (count + grain - 1) / grain;
    const std::int64_t parts = std::min(grains, kPartsPerThread * num_threads);
    Work work{task, context, count, (grains + parts - 1) / parts * grain};
    if (const OpenMpRegion region = openmp_region.load(std::memory_order_relaxed)) {
        // Always all threads: a runtime that is asked for another number ends or starts some.
        region(run_work, &work, static_cast<unsigned>(num_threads), 0);
        return;
    }
    std::vector<std::thread> threads;
    try {
        for (std::int64_t i = 1; i < std::min<std::int64_t>(num_threads, parts); ++i)
            threads.emplace_back(run_work, &work);
    } catch (...) {  // no more threads to be had: those that there are do it
    }
    work.run();
    for (std::thread& thread : threads) thread.join();
}

}  // namespace halftone

extern "C" {

// Has parallel work run in an OpenMP runtime's threads.
//   region: its GOMP_parallel, or null for threads of our own.
void halftone_use_openmp(void* region) {
    halftone::openmp_region.store(reinterpret_cast<halftone::OpenMpRegion>(region));
}
}
