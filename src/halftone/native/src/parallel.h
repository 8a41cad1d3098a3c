// Splits a range over threads: those of torch's OpenMP runtime where it is known, threads of our own otherwise.
#pragma once

#include <cstdint>

namespace halftone {

// Calls task(context, begin, end) for parts that cover 0 to count, on at most num_threads threads (this one included);
// returns when all are done. Parts have at least `grain` elements, and their bounds are multiples of `grain`.
void parallel_for(std::int64_t count, std::int64_t grain, int num_threads,
                  void (*task)(const void* context, std::int64_t begin, std::int64_t end), const void* context);

// The same with anything callable: parallel_for(rows, 16, threads, [&](int64_t begin, int64_t end) { ... });
template <class Body>
void parallel_for(std::int64_t count, std::int64_t grain, int num_threads, const Body& body) {
    parallel_for(
        count, grain, num_threads,
        [](const void* context, std::int64_t begin, std::int64_t end) {
            (*static_cast<const Body*>(context))(begin, end);
        },
        &body);
}

}  // namespace halftone
