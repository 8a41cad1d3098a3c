// Fused attention softmax(scale * Q K^T) V for x86 CPUs with AVX-512 VNNI and BF16; native/attention.py calls it.
//
// The scores of six queries and 64 keys are summed in registers, either from bfloat16 or from 8-bit integers. A round
// of 256 keys is turned into probabilities (softmax with a running maximum: Milakov and Gimelshein 2018), and these,
// rounded to bfloat16, multiply V in bfloat16 into float32. No score leaves the first-level cache.
//
// Softmax forgets what is the same for all keys of a query. So with the means m_q and m_k over the tokens of a head
//
//     q . k  =  (q - m_q) . (k - m_k)  +  m_q . (k - m_k)  +  something that is the same for all keys
//
// where only the first product is rounded; the second is one float32 number a key. (Subtracting K's mean is from
// SageAttention, Q's from SageAttention2: Zhang et al. 2024.) With 8 bits every query and every key has a scale of its
// own, and channels are balanced first: q * c and k / c with c^2 = spread of k / spread of q (after SmoothQuant: Xiao
// et al. 2022). Inputs in bfloat16 are multiplied as they are, which is exact. A result depends on its own head alone,
// and not on the number of threads.
#include "attention_packing.h"
#include "attention_problem.h"
#include "parallel.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

namespace halftone {
namespace attention {
namespace {

enum Status : int { kDone = 0, kUnsupportedCpu = 1, kWrongArguments = 2, kOutOfMemory = 3 };

#if HALFTONE_ATTENTION

constexpr float kLog2E = 1.4426950408889634f;
constexpr double kWorkOfThreads = 1 << 22;  // multiplications below which one thread does it all

// Six packed queries against up to 64 packed keys.
struct Tile {
    const uint32_t *q, *k;
    int groups;
    const float *row_scale, *key_scale, *key_bias;
    const int32_t* key_start;
    float* scores;    // rows kRound apart
    __m512* largest;  // [6] the largest score so far in each lane
};

// sum + a . b in each lane: of four bytes (a unsigned, b signed), or of two bfloat16 into float32. In assembly, because
// GCC copies every sum of a loop of the intrinsics to memory and back.
template <bool kInt8>
FAST_INLINE __m512i dot(__m512i sum, __m512i a, __m512i b) {
    if (kInt8) {
        asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    } else {
        asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    }
    return sum;
}

// Scores, in units of log2, of six queries and so many registers of keys.
template <bool kInt8, int kVectors>
FAST void tile_scores(const Tile& t) {
    __m512i sums[kRows][kVectors];
    for (int i = 0; i < kVectors; ++i) {
        for (int r = 0; r < kRows; ++r) sums[r][i] = _mm512_load_si512(t.key_start + i * kLanes);
    }
    const uint32_t *q = t.q, *k = t.k;
    for (int g = 0; g < t.groups; ++g, q += kRows, k += kVectors * kLanes) {
        __m512i keys[kVectors];
        for (int i = 0; i < kVectors; ++i) keys[i] = _mm512_load_si512(k + i * kLanes);
        for (int r = 0; r < kRows; ++r) {
            const __m512i query = _mm512_set1_epi32(static_cast<int>(q[r]));
            for (int i = 0; i < kVectors; ++i) sums[r][i] = dot<kInt8>(sums[r][i], query, keys[i]);
        }
    }
    for (int r = 0; r < kRows; ++r) {
        const __m512 row = _mm512_set1_ps(t.row_scale[r]);
        for (int i = 0; i < kVectors; ++i) {
            const __m512 sum = kInt8 ? _mm512_cvtepi32_ps(sums[r][i]) : _mm512_castsi512_ps(sums[r][i]);
            const __m512 step = kInt8 ? _mm512_mul_ps(row, _mm512_load_ps(t.key_scale + i * kLanes)) : row;
            const __m512 score = _mm512_fmadd_ps(sum, step, _mm512_load_ps(t.key_bias + i * kLanes));
            t.largest[r] = _mm512_max_ps(t.largest[r], score);
            _mm512_store_ps(t.scores + r * kRound + i * kLanes, score);
        }
    }
}

// 2^x for x <= 0, to 1e-4 of it: a cubic for the fraction (least largest relative error on [0, 1]).
FAST_INLINE __m512 exp2(__m512 x) {
    const __m512 fraction = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 y = _mm512_set1_ps(0.0780245226f);
    y = _mm512_fmadd_ps(y, fraction, _mm512_set1_ps(0.2260671555f));
    y = _mm512_fmadd_ps(y, fraction, _mm512_set1_ps(0.6958335405f));
    y = _mm512_fmadd_ps(y, fraction, _mm512_set1_ps(0.9999252186f));
    return _mm512_scalef_ps(y, x);  // takes the whole part of x
}

// Probabilities of one query, not yet divided by their sum, which is returned. `keys` is a multiple of 16.
FAST_INLINE float exponentials(const float* scores, int keys, float maximum, uint32_t* probabilities) {
    const __m512 top = _mm512_set1_ps(maximum);
    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
    int key = 0;
    for (; key + 2 * kLanes <= keys; key += 2 * kLanes) {
        const __m512 low = exp2(_mm512_sub_ps(_mm512_load_ps(scores + key), top));
        const __m512 high = exp2(_mm512_sub_ps(_mm512_load_ps(scores + key + kLanes), top));
        even = _mm512_add_ps(even, low), odd = _mm512_add_ps(odd, high);
        _mm512_store_si512(probabilities + key / 2, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
    if (key < keys) {
        const __m512 last = exp2(_mm512_sub_ps(_mm512_load_ps(scores + key), top));
        even = _mm512_add_ps(even, last);
        _mm256_store_si256(reinterpret_cast<__m256i*>(probabilities + key / 2), to_bfloat16(last));
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(even, odd));
}

// Probabilities of six queries and the keys of a round. Returns by what earlier sums and outputs shrink, a lane a row.
FAST __m512 softmax_round(const Workspace& w, const __m512* largest, int keys, float* row_max, float* row_sum) {
    alignas(64) float maxima[kLanes] = {}, sums[kLanes] = {};
    for (int r = 0; r < kRows; ++r) maxima[r] = _mm512_reduce_max_ps(largest[r]);
    const __m512 before = _mm512_load_ps(row_max);
    const __m512 now = _mm512_max_ps(before, _mm512_load_ps(maxima));
    _mm512_store_ps(maxima, now);
    for (int r = 0; r < kRows; ++r) {
        sums[r] = exponentials(w.scores + r * kRound, keys, maxima[r], w.probabilities + r * kRound / 2);
    }
    const __m512 shrink = exp2(_mm512_sub_ps(before, now));
    _mm512_store_ps(row_max, now);
    _mm512_store_ps(row_sum, _mm512_fmadd_ps(_mm512_load_ps(row_sum), shrink, _mm512_load_ps(sums)));
    return shrink;
}

// out = out * shrink + probabilities V, for six queries and so many registers of channels; rows of V are `width` apart.
template <int kVectors>
FAST void add_values(const uint32_t* probabilities, const uint32_t* v, int pairs, int width, const float* shrink,
                     float* out) {
    __m512i sums[kRows][kVectors];
    for (int r = 0; r < kRows; ++r) {
        const __m512 factor = _mm512_set1_ps(shrink[r]);
        for (int i = 0; i < kVectors; ++i) {
            const __m512 before = _mm512_load_ps(out + r * width + i * kLanes);
            sums[r][i] = _mm512_castps_si512(_mm512_mul_ps(factor, before));
        }
    }
    for (int pair = 0; pair < pairs; ++pair, v += width) {
        __m512i values[kVectors];
        for (int i = 0; i < kVectors; ++i) values[i] = _mm512_load_si512(v + i * kLanes);
        for (int r = 0; r < kRows; ++r) {
            const __m512i both = _mm512_set1_epi32(static_cast<int>(probabilities[r * (kRound / 2) + pair]));
            for (int i = 0; i < kVectors; ++i) sums[r][i] = dot<false>(sums[r][i], both, values[i]);
        }
    }
    for (int r = 0; r < kRows; ++r) {
        for (int i = 0; i < kVectors; ++i) _mm512_store_si512(out + r * width + i * kLanes, sums[r][i]);
    }
}

// The same for all channels, in even parts of at most four registers.
FAST void add_all_values(const Workspace& w, const uint32_t* v, int pairs, int vectors, const float* shrink,
                         float* out) {
    const int parts = (vectors + 3) / 4, width = vectors * kLanes;
    for (int part = 0; part < parts; ++part) {
        const int begin = vectors * part / parts, end = vectors * (part + 1) / parts, at = begin * kLanes;
        switch (end - begin) {
            case 1: add_values<1>(w.probabilities, v + at, pairs, width, shrink, out + at); break;
            case 2: add_values<2>(w.probabilities, v + at, pairs, width, shrink, out + at); break;
            case 3: add_values<3>(w.probabilities, v + at, pairs, width, shrink, out + at); break;
            default: add_values<4>(w.probabilities, v + at, pairs, width, shrink, out + at); break;
        }
    }
}

// Six queries and the keys of a round, the last of them padded.
template <bool kInt8>
FAST void attend(const Problem& p, Workspace& w, int group, int64_t begin, int64_t end) {
    alignas(64) float shrink[kLanes];
    __m512 largest[kRows];
    for (auto& value : largest) value = _mm512_set1_ps(kNever);
    const int groups = p.groups(), vectors = p.vectors(), keys = static_cast<int>(end - begin);
    for (int64_t at = begin; at < end; at += kTile) {
        const Tile tile{w.q + group * kRows * groups, w.k + at * groups, groups, w.row_scale + group * kRows,
                        w.key_scale + at, w.key_bias + at, w.key_start + at, w.scores + (at - begin), largest};
        switch (std::min<int64_t>(kTile, end - at) / kLanes) {
            case 1: tile_scores<kInt8, 1>(tile); break;
            case 2: tile_scores<kInt8, 2>(tile); break;
            case 3: tile_scores<kInt8, 3>(tile); break;
            default: tile_scores<kInt8, 4>(tile); break;
        }
    }
    _mm512_store_ps(shrink, softmax_round(w, largest, keys, w.row_max + group * kLanes, w.row_sum + group * kLanes));
    const uint32_t* v = w.v + begin / 2 * vectors * kLanes;
    add_all_values(w, v, keys / 2, vectors, shrink, w.out + static_cast<int64_t>(group) * kRows * vectors * kLanes);
}

FAST void store_block(const Problem& p, const Workspace& w, int64_t b, int64_t h, int64_t first, int count) {
    const int vectors = p.vectors();
    for (int query = 0; query < count; ++query) {
        const __m512 share = _mm512_set1_ps(1.0f / w.row_sum[query / kRows * kLanes + query % kRows]);
        char* row = p.out.row(b, h, first + query);
        for (int i = 0; i < vectors; ++i) {
            const __mmask16 mask = lanes_below(p.head_dim - i * kLanes);
            const __m512 x = _mm512_mul_ps(share, _mm512_load_ps(w.out + (query * vectors + i) * kLanes));
            if (p.out.is_bfloat16) {
                _mm256_mask_storeu_epi16(reinterpret_cast<uint16_t*>(row) + i * kLanes, mask, to_bfloat16(x));
            } else {
                _mm512_mask_storeu_ps(reinterpret_cast<float*>(row) + i * kLanes, mask, x);
            }
        }
    }
}

// At most `kBlock` queries of a head whose keys and values are packed.
void attend_block(const Problem& p, Workspace& w, int64_t b, int64_t h, int64_t first, int count) {
    const int query_groups = (count + kRows - 1) / kRows;
    pack_queries(p, w, b, h, first, count);
    std::fill_n(w.out, query_groups * kRows * p.vectors() * kLanes, 0.0f);
    std::fill_n(w.row_max, query_groups * kLanes, kNever);
    std::fill_n(w.row_sum, query_groups * kLanes, 0.0f);
    for (int64_t begin = 0; begin < p.keys; begin += kRound) {
        const int64_t end = std::min(begin + kRound, p.padded_keys());
        for (int group = 0; group < query_groups; ++group) {
            p.is_int8 ? attend<true>(p, w, group, begin, end) : attend<false>(p, w, group, begin, end);
        }
    }
    store_block(p, w, b, h, first, count);
}

// What is handed to threads: heads, or parts of their queries where heads are few.
struct Schedule {
    int64_t parts_of_head, queries_of_part, items;

    Schedule(const Problem& p, int threads) {
        const int64_t heads = p.batch * p.heads, blocks = (p.queries + kBlock - 1) / kBlock;
        const int64_t wanted = threads == 1 ? 1 : (4 * threads + heads - 1) / heads;
        queries_of_part = (blocks + wanted - 1) / wanted * kBlock;
        parts_of_head = (p.queries + queries_of_part - 1) / queries_of_part;
        items = heads * parts_of_head;
    }
};

void work(const Problem& p, const Schedule& schedule, Workspace& w, int64_t begin_item, int64_t end_item) {
    for (int64_t item = begin_item; item < end_item; ++item) {
        const int64_t head = item / schedule.parts_of_head, b = head / p.heads, h = head % p.heads;
        if (w.head != head) pack_head(p, w, b, h);
        const int64_t begin = item % schedule.parts_of_head * schedule.queries_of_part;
        const int64_t end = std::min(begin + schedule.queries_of_part, p.queries);
        for (int64_t first = begin; first < end; first += kBlock) {
            attend_block(p, w, b, h, first, static_cast<int>(std::min<int64_t>(kBlock, end - first)));
        }
    }
}

// Every thread packs the heads that it meets for itself, so that none waits. Throws std::bad_alloc, before any work.
void run(const Problem& p, int wanted) {
    const double products = 2.0 * p.batch * p.heads * p.queries * static_cast<double>(p.keys) * p.head_dim;
    const int threads = products < kWorkOfThreads ? 1 : std::max(1, wanted);
    const Schedule schedule(p, threads);
    std::vector<std::unique_ptr<Workspace>> idle;  // as many as can be at work at a time
    for (int64_t i = 0; i < std::min<int64_t>(threads, schedule.items); ++i) {
        idle.push_back(std::make_unique<Workspace>(p));
    }
    std::mutex mutex;
    parallel_for(schedule.items, 1, threads, [&](int64_t begin, int64_t end) {
        std::unique_lock<std::mutex> lock(mutex);
        std::unique_ptr<Workspace> mine = std::move(idle.back());
        idle.pop_back();
        lock.unlock();
        work(p, schedule, *mine, begin, end);
        lock.lock();
        idle.push_back(std::move(mine));
    });
}

bool is_supported() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
}

Problem problem_of(const void* q, const void* k, const void* v, void* out, const int64_t* shape, const int64_t* strides,
                   bool is_bfloat16, float scale, bool is_int8) {
    const auto view = [&](const void* data, int index) {
        const int64_t* s = strides + 3 * index;
        return View{static_cast<char*>(const_cast<void*>(data)), s[0], s[1], s[2], is_bfloat16};
    };
    return {view(q, 0), view(k, 1), view(v, 2), view(out, 3), shape[0], shape[1], shape[2], shape[3],
            static_cast<int>(shape[4]), scale * kLog2E, is_int8};
}

#endif  // HALFTONE_ATTENTION

}  // namespace
}  // namespace attention
}  // namespace halftone

extern "C" {

// The widest head that `halftone_attention` takes on this CPU; 0 if it does not run here.
std::int32_t halftone_attention_max_head_dim() {
#if HALFTONE_ATTENTION
    return halftone::attention::is_supported() ? halftone::attention::kMaxHeadDim : 0;
#else
    return 0;
#endif
}

// out = softmax(scale * q k^T) v, for every batch and head.
//   q, k, v, out: float32, or bfloat16 if `is_bfloat16`, with channels side by side; out overlaps none of the others.
//   shape: batch, heads, queries, keys, head_dim.
//   strides: of q, k, v and out, those of batch, head and token each, in elements.
//   is_int8: scores from 8-bit integers, else from bfloat16.
// Returns 0; or, and then nothing was written: 1, the CPU lacks an instruction; 2, wrong shape; 3, out of memory.
std::int32_t halftone_attention(const void* q, const void* k, const void* v, void* out, const std::int64_t* shape,
                                const std::int64_t* strides, std::int32_t is_bfloat16, float scale,
                                std::int32_t is_int8, std::int32_t num_threads) {
    using namespace halftone::attention;
#if HALFTONE_ATTENTION
    if (!is_supported()) return kUnsupportedCpu;
    if (*std::min_element(shape, shape + 5) < 1 || shape[4] > kMaxHeadDim) return kWrongArguments;
    try {
        run(problem_of(q, k, v, out, shape, strides, is_bfloat16 != 0, scale, is_int8 != 0), num_threads);
    } catch (const std::bad_alloc&) {
        return kOutOfMemory;
    }
    return kDone;
#else
    (void)q, (void)k, (void)v, (void)out, (void)shape, (void)strides, (void)is_bfloat16, (void)scale, (void)is_int8;
    (void)num_threads;
    return kUnsupportedCpu;
#endif
}

}  // extern "C"
