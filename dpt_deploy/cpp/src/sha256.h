// SHA-256 (FIPS 180-4) of files.
#pragma once

#include <string>

namespace dpt_impl {

// In hexadecimal. Throws Error(DPT_BAD_BUNDLE) when the file cannot be read.
std::string sha256_of_file(const std::string &path);
std::string sha256(const void *data, std::size_t size);

} // namespace dpt_impl
