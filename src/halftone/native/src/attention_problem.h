// What one call of the attention kernel works on: the tensors, and the memory of a thread.
#pragma once

#if defined(__x86_64__) && (defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 10))
#define HALFTONE_ATTENTION 1
#else
#define HALFTONE_ATTENTION 0
#endif

#if HALFTONE_ATTENTION
#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#define FAST __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16")))
#define FAST_INLINE FAST inline __attribute__((always_inline))

namespace halftone {
namespace attention {

constexpr int kLanes = 16;        // 32-bit numbers in a register
constexpr int kRows = 6;          // queries whose scores are summed at a time
constexpr int kTileVectors = 4;   // by so many registers of keys
constexpr int kTile = kTileVectors * kLanes;
constexpr int kRound = 4 * kTile;  // keys between two looks at the running maximum
constexpr int kBlock = 16 * kRows;  // queries that share a pass over K and V
constexpr int kMaxHeadDim = 256;
constexpr int kMaxVectors = kMaxHeadDim / kLanes;
constexpr float kNever = -1e30f;  // score of a key that is not there; finite, since inf - inf is NaN

// A tensor (batch, head, token, channel) whose channels lie side by side.
struct View {
    char* data;
    int64_t batch, head, token;  // strides in elements
    bool is_bfloat16;            // else float32

    char* row(int64_t b, int64_t h, int64_t t) const {
        return data + (b * batch + h * head + t * token) * (is_bfloat16 ? 2 : 4);
    }
};

struct Problem {
    View q, k, v, out;
    int64_t batch, heads, queries, keys;
    int head_dim;
    float scale;   // of the scores, times log2(e)
    bool is_int8;  // scores from 8-bit integers, else from bfloat16

    int vectors() const { return (head_dim + kLanes - 1) / kLanes; }
    int groups() const { return is_int8 ? (head_dim + 3) / 4 : (head_dim + 1) / 2; }  // 32-bit words of a packed row
    int64_t padded_keys() const { return (keys + kLanes - 1) / kLanes * kLanes; }
};

// Memory of one thread, every part of it aligned to a register.
class Workspace {
 public:
    // Throws std::bad_alloc.
    explicit Workspace(const Problem& p) {
        const size_t keys = p.padded_keys(), width = p.vectors() * kLanes;
        constexpr size_t kGroups = kBlock / kRows;
        const size_t k_at = reserve(keys * p.groups()), v_at = reserve(keys / 2 * width);
        const size_t bias_at = reserve(keys), scale_at = reserve(keys), start_at = reserve(keys);
        const size_t q_at = reserve(kBlock * p.groups()), row_scale_at = reserve(kBlock);
        const size_t out_at = reserve(kBlock * width);
        const size_t max_at = reserve(kGroups * kLanes), sum_at = reserve(kGroups * kLanes);
        const size_t scores_at = reserve(kRows * kRound), probabilities_at = reserve(kRows * kRound / 2);
        memory_.reset(static_cast<uint32_t*>(std::aligned_alloc(64, words_ * sizeof(uint32_t))));
        if (!memory_) throw std::bad_alloc();
        k = words(k_at), v = words(v_at), q = words(q_at), probabilities = words(probabilities_at);
        key_start = reinterpret_cast<int32_t*>(words(start_at));
        key_bias = floats(bias_at), key_scale = floats(scale_at), row_scale = floats(row_scale_at);
        row_max = floats(max_at), row_sum = floats(sum_at), scores = floats(scores_at), out = floats(out_at);
    }

    uint32_t* k;         // tiles of 64 keys (the last one may be narrower), each [group][key]
    uint32_t* v;         // [pair of keys][channel], a word holding the channel of both keys in bfloat16
    float* key_bias;     // [key] mean of q . (k - mean of k); kNever beyond the last key
    float* key_scale;    // [key] of its 8-bit integers
    int32_t* key_start;  // [key] -128 * sum of its integers, since those of q have 128 added; 0 with bfloat16
    uint32_t* q;         // [group of queries][group][6]
    float* row_scale;    // [query] of its 8-bit integers or 1, times that of the problem
    float* out;          // [query][channel], not yet divided by row_sum
    float* row_max;      // [group of queries][16], of which 6 are used
    float* row_sum;      // likewise
    float* scores;       // [6][256]
    uint32_t* probabilities;  // [6][128] pairs of bfloat16
    int64_t head = -1;        // whose keys and values are packed here

    // By channel; the factors balance the channels of 8-bit integers.
    alignas(64) float q_mean[kMaxHeadDim], k_mean[kMaxHeadDim], q_factor[kMaxHeadDim], k_factor[kMaxHeadDim];

 private:
    struct Free {
        void operator()(void* memory) const { std::free(memory); }
    };

    size_t reserve(size_t count) {
        const size_t at = words_;
        words_ += (count + kLanes - 1) / kLanes * kLanes;
        return at;
    }
    uint32_t* words(size_t at) const { return memory_.get() + at; }
    float* floats(size_t at) const { return reinterpret_cast<float*>(memory_.get() + at); }

    size_t words_ = 0;
    std::unique_ptr<uint32_t, Free> memory_;
};

FAST_INLINE __mmask16 lanes_below(int count) {
    return count >= kLanes ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
}

// Sixteen channels of a row from `at`; zero beyond the last.
FAST_INLINE __m512 load(const View& view, const char* row, int at, int head_dim) {
    const __mmask16 mask = lanes_below(head_dim - at);
    if (!view.is_bfloat16) return _mm512_maskz_loadu_ps(mask, reinterpret_cast<const float*>(row) + at);
    const __m256i half = _mm256_maskz_loadu_epi16(mask, reinterpret_cast<const uint16_t*>(row) + at);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

FAST_INLINE __m256i to_bfloat16(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

}  // namespace attention
}  // namespace halftone

#endif  // HALFTONE_ATTENTION
