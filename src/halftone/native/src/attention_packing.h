// Queries, keys and values of a head in the form in which the attention kernel multiplies them; see attention.cpp.
#pragma once

#include "attention_problem.h"

#if HALFTONE_ATTENTION

#include <algorithm>
#include <cmath>
#include <cstring>

namespace halftone {
namespace attention {

// Mean of every channel over the tokens of a head, and its standard deviation.
FAST inline void channel_statistics(const View& view, int64_t b, int64_t h, int64_t tokens, int head_dim, float* mean,
                                    float* spread) {
    const __m512 share = _mm512_set1_ps(1.0f / static_cast<float>(tokens));
    for (int at = 0; at < head_dim; at += kLanes) {
        __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
        const __m512 origin = load(view, view.row(b, h, 0), at, head_dim);  // keeps what is squared small
        for (int64_t t = 0; t < tokens; ++t) {
            const __m512 x = _mm512_sub_ps(load(view, view.row(b, h, t), at, head_dim), origin);
            sum = _mm512_add_ps(sum, x);
            squares = _mm512_fmadd_ps(x, x, squares);
        }
        const __m512 middle = _mm512_mul_ps(sum, share);
        const __m512 variance = _mm512_fnmadd_ps(middle, middle, _mm512_mul_ps(squares, share));
        _mm512_store_ps(mean + at, _mm512_add_ps(middle, origin));
        _mm512_store_ps(spread + at, _mm512_sqrt_ps(_mm512_max_ps(variance, _mm512_setzero_ps())));
    }
}

// Turns spreads into factors of q and of k whose product is one, such that both spread alike in every channel.
inline void balance(const Problem& p, Workspace& w) {
    for (int d = 0; d < p.vectors() * kLanes; ++d) {
        const float of_q = w.q_factor[d], of_k = w.k_factor[d];
        const float factor = of_q > 0 && of_k > 0 ? std::sqrt(of_k / of_q) : 1.0f;
        const bool is_usable = std::isfinite(factor) && factor > 0 && std::isfinite(1.0f / factor);
        w.q_factor[d] = is_usable ? factor : 1.0f;
        w.k_factor[d] = is_usable ? 1.0f / factor : 1.0f;
    }
}

// Eight-bit integers of a row, -127 to 127, and `offset` added; returns their scale: NaN if a number is not finite.
FAST_INLINE float to_int8(const __m512* x, int vectors, int offset, uint32_t* words) {
    __m512 largest = _mm512_setzero_ps();
    __mmask16 odd = 0;
    for (int i = 0; i < vectors; ++i) {
        largest = _mm512_max_ps(largest, _mm512_abs_ps(x[i]));
        odd |= _mm512_cmp_ps_mask(_mm512_sub_ps(x[i], x[i]), _mm512_setzero_ps(), _CMP_NEQ_UQ);
    }
    const float bound = _mm512_reduce_max_ps(largest);
    const __m512 steps = _mm512_set1_ps(bound > 1e-30f ? 127.0f / bound : 0.0f);
    const __m512i shift = _mm512_set1_epi32(offset);
    for (int i = 0; i < vectors; ++i) {
        const __m512i integers = _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(x[i], steps)), shift);
        _mm_store_si128(reinterpret_cast<__m128i*>(words) + i, _mm512_cvtepi32_epi8(integers));
    }
    return odd ? NAN : bound / 127.0f;
}

FAST_INLINE void to_pairs(const __m512* x, int vectors, uint32_t* words) {
    for (int i = 0; i < vectors; ++i) _mm256_store_si256(reinterpret_cast<__m256i*>(words) + i, to_bfloat16(x[i]));
}

inline int32_t sum_of_bytes(const uint32_t* words, int count) {
    int32_t sum = 0;
    for (int i = 0; i < 4 * count; ++i) sum += reinterpret_cast<const int8_t*>(words)[i];
    return sum;
}

// Reads a key less the mean, the channels balanced, into x; returns mean of q . (k - mean of k).
FAST_INLINE float read_key(const Problem& p, const Workspace& w, const char* row, __m512* x) {
    __m512 bias = _mm512_setzero_ps();
    for (int i = 0; i < p.vectors(); ++i) {
        const int at = i * kLanes;
        const __m512 centred = _mm512_sub_ps(load(p.k, row, at, p.head_dim), _mm512_load_ps(w.k_mean + at));
        bias = _mm512_fmadd_ps(centred, _mm512_load_ps(w.q_mean + at), bias);
        x[i] = _mm512_mul_ps(centred, _mm512_load_ps(w.k_factor + at));
    }
    return _mm512_reduce_add_ps(bias);
}

FAST inline void pack_keys(const Problem& p, Workspace& w, int64_t b, int64_t h) {
    alignas(64) uint32_t words[kMaxHeadDim / 2];
    __m512 x[kMaxVectors];
    const int groups = p.groups(), vectors = p.vectors();
    const int64_t padded = p.padded_keys();
    std::memset(w.k, 0, static_cast<size_t>(padded) * groups * sizeof(uint32_t));
    for (int64_t key = 0; key < padded; ++key) {
        w.key_scale[key] = 1, w.key_start[key] = 0, w.key_bias[key] = kNever;
        if (key >= p.keys) continue;
        w.key_bias[key] = read_key(p, w, p.k.row(b, h, key), x) * p.scale;
        if (p.is_int8) {
            w.key_scale[key] = to_int8(x, vectors, 0, words);
            w.key_start[key] = -128 * sum_of_bytes(words, groups);
        } else {
            to_pairs(x, vectors, words);
        }
        const int64_t tile = key / kTile * kTile, width = std::min<int64_t>(kTile, padded - tile);
        uint32_t* target = w.k + tile * groups + (key - tile);
        for (int g = 0; g < groups; ++g) target[g * width] = words[g];
    }
}

FAST inline void pack_values(const Problem& p, Workspace& w, int64_t b, int64_t h) {
    const int vectors = p.vectors();
    for (int64_t key = 0; key < p.padded_keys(); key += 2) {
        for (int i = 0; i < vectors; ++i) {
            __m512i halves[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
            for (int one = 0; one < 2 && key + one < p.keys; ++one) {
                const __m512 x = load(p.v, p.v.row(b, h, key + one), i * kLanes, p.head_dim);
                halves[one] = _mm512_cvtepu16_epi32(to_bfloat16(x));
            }
            const __m512i both = _mm512_or_si512(halves[0], _mm512_slli_epi32(halves[1], 16));
            _mm512_store_si512(w.v + (key / 2 * vectors + i) * kLanes, both);
        }
    }
}

// Keys and values of a head, and what queries need: means and factors of the channels.
inline void pack_head(const Problem& p, Workspace& w, int64_t b, int64_t h) {
    std::fill_n(w.q_mean, kMaxHeadDim, 0.0f), std::fill_n(w.k_mean, kMaxHeadDim, 0.0f);
    if (p.is_int8 || !p.q.is_bfloat16) {  // else the products are exact as they are
        channel_statistics(p.q, b, h, p.queries, p.head_dim, w.q_mean, w.q_factor);
        channel_statistics(p.k, b, h, p.keys, p.head_dim, w.k_mean, w.k_factor);
    }
    if (p.is_int8) {
        balance(p, w);
    } else {
        std::fill_n(w.q_factor, kMaxHeadDim, 1.0f), std::fill_n(w.k_factor, kMaxHeadDim, 1.0f);
    }
    pack_keys(p, w, b, h);
    pack_values(p, w, b, h);
    w.head = b * p.heads + h;
}

// Queries `first` to `first + count`; the rows of the last group that are not there are zero.
FAST inline void pack_queries(const Problem& p, Workspace& w, int64_t b, int64_t h, int64_t first, int count) {
    alignas(64) uint32_t words[kMaxHeadDim / 2];
    __m512 x[kMaxVectors];
    const int groups = p.groups(), vectors = p.vectors();
    for (int query = 0; query < (count + kRows - 1) / kRows * kRows; ++query) {
        for (int i = 0; i < vectors; ++i) {
            const int at = i * kLanes;
            x[i] = _mm512_setzero_ps();
            if (query >= count) continue;
            const __m512 raw = load(p.q, p.q.row(b, h, first + query), at, p.head_dim);
            x[i] = _mm512_mul_ps(_mm512_sub_ps(raw, _mm512_load_ps(w.q_mean + at)), _mm512_load_ps(w.q_factor + at));
        }
        w.row_scale[query] = p.scale;
        if (p.is_int8) {
            w.row_scale[query] *= to_int8(x, vectors, 128, words);
        } else {
            to_pairs(x, vectors, words);
        }
        uint32_t* target = w.q + query / kRows * kRows * groups + query % kRows;
        for (int g = 0; g < groups; ++g) target[g * kRows] = words[g];
    }
}

}  // namespace attention
}  // namespace halftone

#endif  // HALFTONE_ATTENTION
