#include "cache.h"

#include <cstdio>
#include <fstream>
#include <iterator>

#include <unistd.h>

#include "../error.h"

namespace dpt_impl {

std::vector<char> read_cache(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

void replace_cache(const std::string &path, const void *data, std::size_t bytes) noexcept {
    try {
        const std::size_t name = path.find_last_of('/') + 1;
        // Unique to this process and, because several threads may unload at once, to this call.
        const std::string temporary = concat(path.substr(0, name), ".", path.substr(name), ".", getpid(), ".", &name);
        std::FILE *file = std::fopen(temporary.c_str(), "wbx");
        if (file == nullptr) return;
        const bool written = std::fwrite(data, 1, bytes, file) == bytes;
        const bool closed = std::fclose(file) == 0;
        if (!written || !closed || std::rename(temporary.c_str(), path.c_str()) != 0) {
            static_cast<void>(std::remove(temporary.c_str()));
        }
    } catch (...) { // out of memory: the next process compiles the kernels again
    }
}

} // namespace dpt_impl
