// SHA-256 (FIPS 180-4).
#pragma once

#include <cstddef>
#include <string>

namespace dpt_impl {

// The hash of a file, in hexadecimal. Throws Error(DPT_BAD_BUNDLE) if it cannot be read.
std::string sha256_of_file(const std::string &path);
// The hash of `size` bytes of memory, in hexadecimal.
std::string sha256(const void *data, std::size_t size);

} // namespace dpt_impl
