// internals: tests SHA-256 with the examples of FIPS 180-4, a long message, and all lengths around the block size.
#include <cstdio>
#include <string>

#include "sha256.h"

int main() {
    using dpt_impl::sha256;
    int failures = 0;
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
