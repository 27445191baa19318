// Reads and writes the cache file of compiled kernels, which may be missing or in a read-only folder.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace dpt_impl {

// The content of the file; empty if it cannot be read.
std::vector<char> read_cache(const std::string &path);

// Replaces the file atomically: writes a temporary file in the same folder and renames it. On failure the file is
// unchanged.
void replace_cache(const std::string &path, const void *data, std::size_t bytes) noexcept;

} // namespace dpt_impl
