// A file that may or may not be there, in a folder that may not be writable.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace dpt_impl {

// What the file holds; nothing where it cannot be read.
std::vector<char> read_cache(const std::string &path);

// Writes beside `path` under a temporary name and renames it, so that a reader sees the old file or the new one. Where
// that is not possible, nothing changes.
void replace_cache(const std::string &path, const void *data, std::size_t bytes) noexcept;

} // namespace dpt_impl
