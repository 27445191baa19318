#include "sha256.h"

#include <array>
#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "error.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace dpt_impl {
namespace {

using State = std::array<std::uint32_t, 8>;
constexpr std::size_t kBlock = 64;
constexpr std::size_t kChunk = 1 << 20;

// The first 32 bits of the fractional parts of the square roots (h0..h7) and cube roots (K) of the first primes.
struct Constants {
    State start{};
    alignas(16) std::array<std::uint32_t, 64> k{};

    Constants() {
        unsigned found = 0;
        for (unsigned n = 2; found < 64; ++n) {
            bool prime = true;
            for (unsigned d = 2; d * d <= n; ++d) prime = prime && n % d != 0;
            if (!prime) continue;
            if (found < 8) start[found] = fraction(std::sqrt(static_cast<long double>(n)));
            k[found++] = fraction(std::cbrt(static_cast<long double>(n)));
        }
    }

    static std::uint32_t fraction(long double root) {
        return static_cast<std::uint32_t>((root - std::floor(root)) * 4294967296.0L);
    }
};

const Constants &constants() {
    static const Constants values;
    return values;
}

std::uint32_t rotate(std::uint32_t x, int n) { return (x >> n) | (x << (32 - n)); }

void compress_portable(State &state, const std::uint8_t *data, std::size_t blocks) {
    const auto &k = constants().k;
    for (; blocks > 0; --blocks, data += kBlock) {
        std::array<std::uint32_t, 64> w;
        for (std::size_t t = 0; t < 16; ++t) {
            w[t] = static_cast<std::uint32_t>(data[4 * t]) << 24 | static_cast<std::uint32_t>(data[4 * t + 1]) << 16 |
                   static_cast<std::uint32_t>(data[4 * t + 2]) << 8 | data[4 * t + 3];
        }
        for (std::size_t t = 16; t < 64; ++t) {
            const std::uint32_t low = rotate(w[t - 15], 7) ^ rotate(w[t - 15], 18) ^ (w[t - 15] >> 3);
            const std::uint32_t high = rotate(w[t - 2], 17) ^ rotate(w[t - 2], 19) ^ (w[t - 2] >> 10);
            w[t] = w[t - 16] + low + w[t - 7] + high;
        }
        auto [a, b, c, d, e, f, g, h] = state;
        for (std::size_t t = 0; t < 64; ++t) {
            const std::uint32_t choose = (e & f) ^ (~e & g), majority = (a & b) ^ (a & c) ^ (b & c);
            const std::uint32_t t1 = h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + choose + k[t] + w[t];
            const std::uint32_t t2 = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + majority;
            h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
        }
        const State added = {a, b, c, d, e, f, g, h};
        for (std::size_t i = 0; i < 8; ++i) state[i] += added[i];
    }
}

#if defined(__x86_64__)
// Uses the SHA instructions of the processor. Without them, hashing a bundle of several gigabytes takes seconds.
__attribute__((target("sha,sse4.1,ssse3"))) void compress_sha_ni(State &state, const std::uint8_t *data,
                                                                 std::size_t blocks) {
    const auto &k = constants().k;
    const auto word = [&state](std::size_t i) { return static_cast<int>(state[i]); };
    // The instructions expect the state as (a, b, e, f) and (c, d, g, h), highest lane first.
    __m128i abef = _mm_set_epi32(word(0), word(1), word(4), word(5));
    __m128i cdgh = _mm_set_epi32(word(2), word(3), word(6), word(7));
    const __m128i big_endian = _mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3);
    for (; blocks > 0; --blocks, data += kBlock) {
        const __m128i abef_before = abef, cdgh_before = cdgh;
        __m128i w[4]; // the last 16 words of the schedule
        for (int i = 0; i < 4; ++i) {
            w[i] = _mm_loadu_si128(reinterpret_cast<const __m128i *>(data) + i);
            w[i] = _mm_shuffle_epi8(w[i], big_endian);
        }
        for (std::size_t group = 0; group < 16; ++group) { // four rounds each
            const __m128i current = w[group % 4];
            const __m128i keys = _mm_load_si128(reinterpret_cast<const __m128i *>(&k[4 * group]));
            const __m128i sum = _mm_add_epi32(current, keys);
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0E));
            const __m128i last = w[(group + 3) % 4];
            __m128i next = _mm_sha256msg1_epu32(current, w[(group + 1) % 4]);
            next = _mm_add_epi32(next, _mm_alignr_epi8(last, w[(group + 2) % 4], 4));
            w[group % 4] = _mm_sha256msg2_epu32(next, last);
        }
        abef = _mm_add_epi32(abef, abef_before);
        cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }
    const auto lane = [](__m128i x, int i) {
        alignas(16) std::uint32_t out[4];
        _mm_store_si128(reinterpret_cast<__m128i *>(out), x);
        return out[i];
    };
    state = {lane(abef, 3), lane(abef, 2), lane(cdgh, 3), lane(cdgh, 2),
             lane(abef, 1), lane(abef, 0), lane(cdgh, 1), lane(cdgh, 0)};
}

bool has_sha_ni() {
    // CPUID leaf 7: EBX bit 29. __builtin_cpu_supports of GCC 12 does not accept "sha".
    unsigned a = 7, b = 0, c = 0, d = 0;
    __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return (b >> 29 & 1U) != 0 && __builtin_cpu_supports("sse4.1") != 0;
}
#endif

void compress(State &state, const std::uint8_t *data, std::size_t blocks) {
#if defined(__x86_64__)
    static const bool fast = has_sha_ni();
    if (fast) return compress_sha_ni(state, data, blocks);
#endif
    compress_portable(state, data, blocks);
}

// Processes the last `size` bytes of a message of `total` bytes and the padding. Returns the hash in hexadecimal.
std::string finish(State &state, const std::uint8_t *rest, std::size_t size, std::uint64_t total) {
    std::array<std::uint8_t, 2 * kBlock> tail{};
    if (size > 0) std::memcpy(tail.data(), rest, size);
    tail[size] = 0x80;
    const std::size_t length = size + 9 <= kBlock ? kBlock : 2 * kBlock;
    for (std::size_t i = 0; i < 8; ++i) tail[length - 1 - i] = static_cast<std::uint8_t>(total * 8 >> 8 * i);
    compress(state, tail.data(), length / kBlock);
    std::string hex;
    for (const std::uint32_t word : state) {
        for (int shift = 28; shift >= 0; shift -= 4) hex += "0123456789abcdef"[word >> shift & 15U];
    }
    return hex;
}

} // namespace

std::string sha256(const void *data, std::size_t size) {
    State state = constants().start;
    const auto *bytes = static_cast<const std::uint8_t *>(data);
    compress(state, bytes, size / kBlock);
    return finish(state, bytes + size / kBlock * kBlock, size % kBlock, size);
}

std::string sha256_of_file(const std::string &path) {
    const std::unique_ptr<std::FILE, int (*)(std::FILE *)> file(std::fopen(path.c_str(), "rb"), std::fclose);
    if (!file) fail(DPT_BAD_BUNDLE, path, " cannot be read: ", std::strerror(errno), ". Check its permissions.");
    State state = constants().start;
    std::vector<std::uint8_t> chunk(kChunk);
    std::uint64_t total = 0;
    for (;;) {
        const std::size_t size = std::fread(chunk.data(), 1, kChunk, file.get()); // less than kChunk only at the end
        total += size;
        compress(state, chunk.data(), size / kBlock);
        if (size == kChunk) continue;
        if (std::ferror(file.get()) != 0) {
            fail(DPT_BAD_BUNDLE, path, " cannot be read: ", std::strerror(errno), ". Check the disk.");
        }
        return finish(state, chunk.data() + size / kBlock * kBlock, size % kBlock, total);
    }
}

} // namespace dpt_impl
