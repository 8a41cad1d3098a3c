// Activations to unsigned codes in one pass over memory.
//
// The definition is halftone.numerics.quantize: q = clamp(round_half_even(x * factor) + zero_point, 0, 2^num_bits - 1).
// Here the clamp comes first, to [-zero_point, top - zero_point]: its bounds are integers and rounding is monotone, so
// the codes are the same, and no conversion can overflow. A NaN gets code 0, by the order of the operands of max.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "instruction_set.h"
#include "parallel.h"

#if HALFTONE_X86
#include <immintrin.h>
#define TARGET_AVX2 __attribute__((target("avx2,fma,f16c")))
#define TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))
#endif

namespace halftone {
namespace {

using std::int32_t;
using std::int64_t;
using std::uint16_t;
using std::uint32_t;
using std::uint8_t;

enum class Dtype : int { float32 = 0, bfloat16 = 1, float16 = 2 };

int64_t bytes_of(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 2; }

// How codes are made, and cut into planes.
struct Coding {
    float factor, low, high;  // reciprocal of the scale; the clamp's bounds
    int32_t zero_point;
    int shift;  // bits of the low plane, 0 if there is none

    Coding(float factor, int32_t zero_point, int32_t num_bits)
        : factor(factor),
          low(static_cast<float>(-zero_point)),
          high(static_cast<float>((1 << num_bits) - 1 - zero_point)),
          zero_point(zero_point),
          shift(std::max(0, num_bits - 8)) {}
};

// Where codes go: high parts, and low parts if `coding.shift` is not 0.
struct Planes {
    uint8_t* high;
    uint8_t* low;

    Planes operator+(int64_t offset) const { return {high + offset, low ? low + offset : nullptr}; }
};

float float_of_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

float half_to_float(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16, rest = half & 0x7fffu;
    if (rest >= 0x7c00u) return float_of_bits(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    // Exact for subnormal numbers as well: the exponent's bias is corrected by a product.
    const float magnitude = float_of_bits(rest << 13) * float_of_bits((254u - 15u) << 23);
    return sign ? -magnitude : magnitude;
}

template <Dtype dtype>
float load_one(const void* x, int64_t i) {
    if constexpr (dtype == Dtype::float32) return static_cast<const float*>(x)[i];
    const uint16_t bits = static_cast<const uint16_t*>(x)[i];
    return dtype == Dtype::bfloat16 ? float_of_bits(static_cast<uint32_t>(bits) << 16) : half_to_float(bits);
}

// ------------------------------------------------------------------------------------------- one run of elements

template <Dtype dtype>
void quantize_portable(const void* x, int64_t count, const Coding& c, Planes planes) {
    const float magic = 12582912.0f;  // 1.5 * 2^23: neighbouring floats are 1 apart, so adding it rounds, half to even
    const int32_t magic_bits = 0x4b400000, mask = (1 << c.shift) - 1;
    for (int64_t i = 0; i < count; ++i) {
        float y = load_one<dtype>(x, i) * c.factor;
        y = y > c.low ? y : c.low;
        y = y < c.high ? y : c.high;
        y += magic;
        int32_t bits;
        std::memcpy(&bits, &y, sizeof bits);
        const int32_t code = bits - magic_bits + c.zero_point;
        planes.high[i] = static_cast<uint8_t>(code >> c.shift);
        if (c.shift) planes.low[i] = static_cast<uint8_t>(code & mask);
    }
}

#if HALFTONE_X86
template <Dtype dtype>
TARGET_AVX2 inline __m256 load_8(const void* x, int64_t i) {
    if constexpr (dtype == Dtype::float32) return _mm256_loadu_ps(static_cast<const float*>(x) + i);
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(x) + i));
    if constexpr (dtype == Dtype::float16) return _mm256_cvtph_ps(bits);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

TARGET_AVX2 inline __m256i codes_8(__m256 x, __m256 factor, __m256 low, __m256 high, __m256i zero_point) {
    const __m256 y = _mm256_min_ps(_mm256_max_ps(_mm256_mul_ps(x, factor), low), high);
    return _mm256_add_epi32(_mm256_cvtps_epi32(y), zero_point);
}

// 32 values of 0 to 255 to bytes, in order.
TARGET_AVX2 inline __m256i bytes_of_32(__m256i a, __m256i b, __m256i c, __m256i d) {
    const __m256i mixed = _mm256_packus_epi16(_mm256_packus_epi32(a, b), _mm256_packus_epi32(c, d));
    return _mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

template <Dtype dtype>
TARGET_AVX2 void quantize_avx2(const void* x, int64_t count, const Coding& c, Planes planes) {
    const __m256 factor = _mm256_set1_ps(c.factor), low = _mm256_set1_ps(c.low), high = _mm256_set1_ps(c.high);
    const __m256i zero_point = _mm256_set1_epi32(c.zero_point), mask = _mm256_set1_epi32((1 << c.shift) - 1);
    const __m128i shift = _mm_cvtsi32_si128(c.shift);
    int64_t i = 0;
    for (; i + 32 <= count; i += 32) {
        __m256i q[4];
        for (int j = 0; j < 4; ++j) q[j] = codes_8(load_8<dtype>(x, i + 8 * j), factor, low, high, zero_point);
        if (c.shift) {
            const __m256i lows = bytes_of_32(_mm256_and_si256(q[0], mask), _mm256_and_si256(q[1], mask),
                                             _mm256_and_si256(q[2], mask), _mm256_and_si256(q[3], mask));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(planes.low + i), lows);
            for (int j = 0; j < 4; ++j) q[j] = _mm256_srl_epi32(q[j], shift);
        }
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(planes.high + i), bytes_of_32(q[0], q[1], q[2], q[3]));
    }
    quantize_portable<dtype>(static_cast<const char*>(x) + i * bytes_of(dtype), count - i, c, planes + i);
}

template <Dtype dtype>
TARGET_AVX512 inline __m512 load_16(const void* x, int64_t i, __mmask16 which) {
    if constexpr (dtype == Dtype::float32) return _mm512_maskz_loadu_ps(which, static_cast<const float*>(x) + i);
    const __m256i bits = _mm256_maskz_loadu_epi16(which, static_cast<const uint16_t*>(x) + i);
    if constexpr (dtype == Dtype::float16) return _mm512_cvtph_ps(bits);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

template <Dtype dtype>
TARGET_AVX512 void quantize_avx512(const void* x, int64_t count, const Coding& c, Planes planes) {
    const __m512 factor = _mm512_set1_ps(c.factor), low = _mm512_set1_ps(c.low), high = _mm512_set1_ps(c.high);
    const __m512i zero_point = _mm512_set1_epi32(c.zero_point), mask = _mm512_set1_epi32((1 << c.shift) - 1);
    const __m128i shift = _mm_cvtsi32_si128(c.shift);
    const auto write = [&](int64_t i, __mmask16 which) TARGET_AVX512 {
        const __m512 scaled = _mm512_mul_ps(load_16<dtype>(x, i, which), factor);
        const __m512 y = _mm512_min_ps(_mm512_max_ps(scaled, low), high);
        const __m512i q = _mm512_add_epi32(_mm512_cvtps_epi32(y), zero_point);
        if (c.shift) _mm512_mask_cvtepi32_storeu_epi8(planes.low + i, which, _mm512_and_si512(q, mask));
        _mm512_mask_cvtepi32_storeu_epi8(planes.high + i, which, _mm512_srl_epi32(q, shift));
    };
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) write(i, 0xffff);
    if (i < count) write(i, static_cast<__mmask16>((1u << (count - i)) - 1));
}
#endif

using Quantize = void (*)(const void* x, int64_t count, const Coding& coding, Planes planes);

template <Dtype dtype>
Quantize variant(InstructionSet set) {
#if HALFTONE_X86
    if (set == InstructionSet::avx512) return quantize_avx512<dtype>;
    if (set == InstructionSet::avx2) return quantize_avx2<dtype>;
#endif
    (void)set;
    return quantize_portable<dtype>;
}

Quantize variant(Dtype dtype, InstructionSet set) {
    if (dtype == Dtype::float32) return variant<Dtype::float32>(set);
    if (dtype == Dtype::bfloat16) return variant<Dtype::bfloat16>(set);
    return variant<Dtype::float16>(set);
}

// ------------------------------------------------------------------------------- channels outermost to innermost

constexpr int64_t kTileChannels = 64, kTilePixels = 128;  // 8 KiB of codes a plane: they stay in the first cache

// Bytes `tile[channel][pixel]`, whose rows are kTilePixels apart, to `out[pixel][channel]`, whose rows are `row` apart.
void transpose_plain(const uint8_t* tile, int64_t channels, int64_t pixels, uint8_t* out, int64_t row) {
    for (int64_t p = 0; p < pixels; ++p)
        for (int64_t c = 0; c < channels; ++c) out[p * row + c] = tile[c * kTilePixels + p];
}

#if HALFTONE_X86 && defined(__SSE2__)
// 16 x 16 bytes, by four rounds of interleaving row i with row i + 8.
void transpose_16(const uint8_t* tile, uint8_t* out, int64_t row) {
    __m128i a[16], b[16];
    for (int i = 0; i < 16; ++i) a[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(tile + i * kTilePixels));
    for (int round = 0; round < 4; ++round) {
        for (int i = 0; i < 8; ++i) {
            b[2 * i] = _mm_unpacklo_epi8(a[i], a[i + 8]);
            b[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + 8]);
        }
        for (int i = 0; i < 16; ++i) a[i] = b[i];
    }
    for (int i = 0; i < 16; ++i) _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i * row), a[i]);
}

void transpose(const uint8_t* tile, int64_t channels, int64_t pixels, uint8_t* out, int64_t row) {
    const int64_t whole_channels = channels / 16 * 16, whole_pixels = pixels / 16 * 16;
    for (int64_t p = 0; p < whole_pixels; p += 16)
        for (int64_t c = 0; c < whole_channels; c += 16)
            transpose_16(tile + c * kTilePixels + p, out + p * row + c, row);
    transpose_plain(tile + whole_pixels, whole_channels, pixels - whole_pixels, out + whole_pixels * row, row);
    transpose_plain(tile + whole_channels * kTilePixels, channels - whole_channels, pixels, out + whole_channels, row);
}
#else
void transpose(const uint8_t* tile, int64_t channels, int64_t pixels, uint8_t* out, int64_t row) {
    transpose_plain(tile, channels, pixels, out, row);
}
#endif

// Images `[channels][pixels]` to codes `[pixels][channels]`.
struct Images {
    const char* x;
    int64_t channels, pixels;
    int64_t element;  // bytes
    Quantize quantize;
    Coding coding;
    Planes planes;

    int64_t tiles() const { return (pixels + kTilePixels - 1) / kTilePixels; }

    // Tile number `index`, counted over all images: some pixels, all channels.
    void write_tile(int64_t index) const {
        alignas(64) uint8_t high[kTileChannels * kTilePixels], low[kTileChannels * kTilePixels];
        const int64_t image = index / tiles(), first = index % tiles() * kTilePixels;
        const int64_t width = std::min(kTilePixels, pixels - first);
        for (int64_t channel = 0; channel < channels; channel += kTileChannels) {
            const int64_t height = std::min(kTileChannels, channels - channel);
            for (int64_t c = 0; c < height; ++c) {
                const int64_t source = (image * channels + channel + c) * pixels + first;
                quantize(x + source * element, width, coding, Planes{high + c * kTilePixels, low + c * kTilePixels});
            }
            const int64_t target = (image * pixels + first) * channels + channel;
            transpose(high, height, width, planes.high + target, channels);
            if (coding.shift) transpose(low, height, width, planes.low + target, channels);
        }
    }
};

constexpr int64_t kGrain = 1 << 15;  // elements that are worth another thread

}  // namespace
}  // namespace halftone

extern "C" {

// Codes of `count` elements, in their order.
//   x: float32, bfloat16 or float16 (dtype 0, 1, 2)
//   factor: float32 reciprocal of the scale
//   zero_point, num_bits: 0 to 2^num_bits - 1; 2 to 16
//   high: the codes; of codes of more than 8 bits all but the lowest num_bits - 8
//   low: those lowest bits; not used up to 8 bits
//   instruction_set: which variant, for tests; -1 is the best
void halftone_quantize(const void* x, std::int32_t dtype, std::int64_t count, float factor, std::int32_t zero_point,
                       std::int32_t num_bits, std::uint8_t* high, std::uint8_t* low, std::int32_t instruction_set,
                       std::int32_t num_threads) {
    using namespace halftone;
    const Dtype kind = static_cast<Dtype>(dtype);
    const Quantize quantize = variant(kind, halftone::instruction_set(instruction_set));
    const Coding coding(factor, zero_point, num_bits);
    const char* bytes = static_cast<const char*>(x);
    parallel_for(count, kGrain, num_threads, [&](int64_t begin, int64_t end) {
        quantize(bytes + begin * bytes_of(kind), end - begin, coding, Planes{high, low} + begin);
    });
}

// Codes of `rows` rows of `length` elements, each row with a factor and a zero point of its own; the rest as above.
void halftone_quantize_rows(const void* x, std::int32_t dtype, std::int64_t rows, std::int64_t length,
                            const float* factors, const std::int32_t* zero_points, std::int32_t num_bits,
                            std::uint8_t* high, std::uint8_t* low, std::int32_t instruction_set,
                            std::int32_t num_threads) {
    using namespace halftone;
    const Dtype kind = static_cast<Dtype>(dtype);
    const Quantize quantize = variant(kind, halftone::instruction_set(instruction_set));
    const char* bytes = static_cast<const char*>(x);
    const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, length));
    parallel_for(rows, grain, num_threads, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            const Coding coding(factors[row], zero_points[row], num_bits);
            const int64_t first = row * length;
            quantize(bytes + first * bytes_of(kind), length, coding, Planes{high, low} + first);
        }
    });
}

// Codes of images `[images][channels][pixels]`, written as `[images][pixels][channels]`; the rest as above.
void halftone_quantize_to_channels_last(const void* x, std::int32_t dtype, std::int64_t images, std::int64_t channels,
                                        std::int64_t pixels, float factor, std::int32_t zero_point,
                                        std::int32_t num_bits, std::uint8_t* high, std::uint8_t* low,
                                        std::int32_t instruction_set, std::int32_t num_threads) {
    using namespace halftone;
    const Dtype kind = static_cast<Dtype>(dtype);
    const Images work{static_cast<const char*>(x),
                      channels,
                      pixels,
                      bytes_of(kind),
                      variant(kind, halftone::instruction_set(instruction_set)),
                      Coding(factor, zero_point, num_bits),
                      Planes{high, low}};
    const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, channels * kTilePixels));
    parallel_for(images * work.tiles(), grain, num_threads, [&](int64_t begin, int64_t end) {
        for (int64_t tile = begin; tile < end; ++tile) work.write_tile(tile);
    });
}
}
