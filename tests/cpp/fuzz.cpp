// A fuzz target: loads bundles with mutated manifests and truncated graphs, and runs those that load. Reads mutated
// graphs, but does not give them to ONNX Runtime.
//
//   fuzz BUNDLE COUNT [SEED]     loads COUNT mutations of BUNDLE; aborts if a call crashes or fails without a message
//   with DPT_LIBFUZZER           libFuzzer generates manifests for the bundle in the variable DPT_FUZZ_BUNDLE
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <stdexcept>
#include <string>
#include <unistd.h>
#include <vector>

#include "dpt_runtime.h"
#include "error.h"
#include "onnx_file.h"
#include "sha256.h"

namespace fs = std::filesystem;

namespace {

std::string read(const fs::path &path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void write(const fs::path &path, const std::string &content) {
    std::ofstream file(path, std::ios::binary | std::ios::trunc);
    file.write(content.data(), static_cast<std::streamsize>(content.size()));
}

// A temporary copy of a bundle, which the destructor deletes.
class Copy {
public:
    explicit Copy(const fs::path &bundle)
        : folder_(fs::temp_directory_path() / ("dpt_fuzz_" + std::to_string(getpid()))) {
        fs::remove_all(folder_);
        fs::copy(bundle, folder_);
        manifest = read(folder_ / "manifest.json");
    }
    ~Copy() {
        std::error_code ignored;
        fs::remove_all(folder_, ignored);
    }
    Copy(const Copy &) = delete;
    Copy &operator=(const Copy &) = delete;

    const fs::path &folder() const { return folder_; }
    std::string manifest;

private:
    fs::path folder_;
};

// Loads a bundle and, if it loads, runs it. Aborts if a call fails without a message.
dpt_status try_bundle(const fs::path &folder) {
    dpt_options options = dpt_options_default();
    options.threads = 1;
    dpt_runtime *runtime = nullptr;
    const dpt_status status = dpt_load(folder.c_str(), &options, &runtime);
    if ((status == DPT_OK) != (runtime != nullptr) || (status != DPT_OK && *dpt_last_error() == '\0') ||
        status == DPT_INTERNAL_ERROR) {
        std::fprintf(stderr, "status %d: '%s'\n", status, dpt_last_error());
        std::abort();
    }
    if (runtime != nullptr) {
        const std::vector<std::uint8_t> pixels(3 * 16 * 16, 50);
        std::vector<float> depth(16 * 16), normals(3 * 16 * 16), alpha(16 * 16);
        const dpt_frames frames = {pixels.data(), 1, 16, 16, DPT_RGB, 0, 0};
        const std::uint32_t heads = dpt_heads(runtime);
        const dpt_maps maps = {(heads & DPT_HAS_DEPTH) != 0 ? depth.data() : nullptr,
                               (heads & DPT_HAS_NORMALS) != 0 ? normals.data() : nullptr,
                               (heads & DPT_HAS_ALPHA) != 0 ? alpha.data() : nullptr};
        if (dpt_infer(runtime, &frames, &maps) != DPT_OK && *dpt_last_error() == '\0') std::abort();
        static_cast<void>(dpt_largest_batch(runtime, 16, 16));
    }
    dpt_unload(runtime);
    return status;
}

#if !defined(DPT_LIBFUZZER)
class Mutator {
public:
    explicit Mutator(unsigned seed) : random_(seed) {}

    std::size_t below(std::size_t end) { return end > 0 ? random_() % end : 0; }

    std::string mutate(std::string text) {
        static const char *const values[] = {"null",  "-1",  "1e999", "99999999999999999999", "\"\"", "[]", "{}",
                                            "true",  "NaN", "\"../x\"", "\"\\u0000\"", "0.5", "\"frame\"", "[[[[",
                                            "{\"a\":", "\xff\xfe", "18446744073709551615", "-9223372036854775808"};
        for (std::size_t edits = 1 + below(3); edits > 0; --edits) {
            const std::size_t at = below(text.size()), length = below(std::min<std::size_t>(text.size() - at, 40));
            switch (below(7)) {
            case 0: text[at] = static_cast<char>(below(256)); break;
            case 1: text.erase(at, length); break;
            case 2: text.insert(below(text.size()), text.substr(at, length)); break;
            case 3: text.resize(at); break;
            case 4: text.insert(at, values[below(std::size(values))]); break;
            case 5: replace_value(text, values[below(std::size(values))]); break;
            default: remove_line(text, at); break;
            }
            if (text.empty()) text = " ";
        }
        return text;
    }

private:
    // Replaces the value after a random colon, up to the comma or the end of the line.
    void replace_value(std::string &text, const char *replacement) {
        const std::size_t colon = text.find(": ", below(text.size()));
        if (colon == std::string::npos) return;
        const std::size_t end = text.find_first_of(",\n", colon);
        if (end != std::string::npos) text.replace(colon + 2, end - colon - 2, replacement);
    }
    static void remove_line(std::string &text, std::size_t at) {
        const std::size_t begin = text.rfind('\n', at), end = text.find('\n', at);
        if (begin != std::string::npos && end != std::string::npos && end > begin) text.erase(begin, end - begin);
    }

    std::mt19937 random_;
};

// Returns the manifest with the hash and size of `content` for `file`, so that the loader accepts the file.
std::string update_manifest(std::string manifest, const std::string &file, const std::string &content) {
    const auto set = [&manifest](std::size_t from, const std::string &key, const std::string &value) {
        const std::size_t at = manifest.find(key, from) + key.size();
        manifest.replace(at, manifest.find_first_of(",\n", at) - at, value);
    };
    const std::size_t entry = manifest.find("\"file\": \"" + file + "\"");
    set(entry, "\"sha256\": ", "\"" + dpt_impl::sha256(content.data(), content.size()) + "\"");
    set(entry, "\"bytes\": ", std::to_string(content.size()));
    return manifest;
}
#endif

} // namespace

#if defined(DPT_LIBFUZZER)
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    static const Copy copy(std::getenv("DPT_FUZZ_BUNDLE"));
    write(copy.folder() / "manifest.json", std::string(reinterpret_cast<const char *>(data), size));
    try_bundle(copy.folder());
    return 0;
}
#else
int main(int argc, char **argv) {
    if (argc != 3 && argc != 4) return 2;
    const int count = std::atoi(argv[2]);
    Mutator mutator(argc == 4 ? static_cast<unsigned>(std::atoi(argv[3])) : 1U);
    const Copy copy(argv[1]);
    const fs::path manifest = copy.folder() / "manifest.json", graph = copy.folder() / "frame.fp32.onnx";
    const std::string intact = read(graph);
    if (try_bundle(copy.folder()) != DPT_OK) {
        std::fprintf(stderr, "the unchanged bundle does not load: %s\n", dpt_last_error());
        return 1;
    }
    int statuses[8] = {};
    for (int i = 0; i < count; ++i) {
        write(manifest, mutator.mutate(copy.manifest));
        ++statuses[try_bundle(copy.folder())];
    }
    std::printf("%d manifests: %d loaded, %d bad bundle, %d contract error, %d missing library, %d backend error\n",
                count, statuses[DPT_OK], statuses[DPT_BAD_BUNDLE], statuses[DPT_CONTRACT_ERROR],
                statuses[DPT_MISSING_LIBRARY], statuses[DPT_BACKEND_ERROR]);
    int rejected = 0, hash_mismatches = 0;
    for (int i = 0; i < count / 20; ++i) { // every second graph with an updated manifest
        const std::string truncated = intact.substr(0, mutator.below(intact.size()));
        write(graph, truncated);
        write(manifest, i % 2 == 0 ? copy.manifest : update_manifest(copy.manifest, "frame.fp32.onnx", truncated));
        const dpt_status status = try_bundle(copy.folder());
        rejected += status != DPT_OK ? 1 : 0;
        hash_mismatches += i % 2 == 0 && status == DPT_BAD_BUNDLE ? 1 : 0;
    }
    int invalid = 0;
    for (int i = 0; i < count; ++i) {
        write(graph, mutator.mutate(intact));
        try {
            dpt_impl::read_onnx_file(graph.string());
        } catch (const dpt_impl::Error &) {
            ++invalid;
        }
    }
    std::printf("%d mutated graphs: %d not valid\n", count, invalid);
    std::printf("%d truncated graphs: %d rejected, %d because of their hash\n", count / 20, rejected, hash_mismatches);
    return hash_mismatches == (count / 20 + 1) / 2 ? 0 : 1;
}
#endif
