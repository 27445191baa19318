// internals: tests SHA-256 with the examples of FIPS 180-4, a long message, and all lengths around the block size; the
// largest frames that can be described; and JSON that is nested deeply.
#include <climits>
#include <cstdio>
#include <string>

#include "error.h"
#include "frames.h"
#include "json.h"
#include "sha256.h"

namespace {

// Whether `work` throws Error with this status.
template <typename Work>
bool is_refused(dpt_status status, const Work &work) {
    try {
        work();
    } catch (const dpt_impl::Error &error) {
        return error.status == status;
    }
    return false;
}

int check(bool right, const char *what) {
    if (!right) std::fprintf(stderr, "FAILED: %s\n", what);
    return right ? 0 : 1;
}

// The sanitizers find an overflow in the arithmetic before the frames are refused.
int check_largest_frames() {
    int failures = 0;
    const std::uint8_t pixel = 0;
    for (const std::int64_t row : {std::int64_t{0}, std::int64_t{INT64_MAX}, std::int64_t{INT64_MIN}}) {
        for (const std::int64_t frame : {std::int64_t{0}, std::int64_t{INT64_MAX}, std::int64_t{INT64_MIN}}) {
            for (std::int32_t format = DPT_RGB; format <= DPT_GRAY; ++format) {
                const dpt_frames frames = {&pixel, INT_MAX, INT_MAX, INT_MAX, format, row, frame};
                failures += check(is_refused(DPT_BAD_INPUT, [&] { dpt_impl::check_frames(frames); }), "large frames");
            }
        }
    }
    return failures;
}

int check_nested_json() {
    const auto nested = [](int depth) {
        return std::string(static_cast<std::size_t>(depth), '[') + std::string(static_cast<std::size_t>(depth), ']');
    };
    int failures = check(dpt_impl::parse_json(nested(dpt_impl::kMaxJsonDepth)).is_array(), "nested JSON");
    failures += check(dpt_impl::parse_json(R"({"a": "[[[[\"[[[["})").at("a") == "[[[[\"[[[[", "brackets in text");
    for (const int depth : {dpt_impl::kMaxJsonDepth + 1, 200'000, 10'000'000}) {
        failures += check(is_refused(DPT_BAD_BUNDLE, [&] { dpt_impl::parse_json(nested(depth)); }), "deeply nested JSON");
    }
    return failures;
}

} // namespace

int main() {
    using dpt_impl::sha256;
    int failures = check_largest_frames() + check_nested_json();
    const auto expect = [&](const std::string &message, const char *hash) {
        if (sha256(message.data(), message.size()) == hash) return;
        std::fprintf(stderr, "FAILED: a message of %zu bytes\n", message.size());
        ++failures;
    };
    expect("", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    expect("abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    expect("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
           "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    expect(std::string(1000000, 'a'), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    // Printed, so that the caller can compare them with Python's hashlib.
    for (std::size_t size = 0; size < 200; ++size) {
        const std::string message(size, static_cast<char>('a' + size % 26));
        std::printf("%s\n", sha256(message.data(), message.size()).c_str());
    }
    return failures != 0;
}
