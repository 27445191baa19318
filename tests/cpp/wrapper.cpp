// wrapper BUNDLE: uses dpt_runtime.hpp as an application would. The bundle must have all heads.
#include <cstdio>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <dpt_runtime.hpp>

static_assert(!std::is_copy_constructible_v<dpt::Runtime> && std::is_nothrow_move_constructible_v<dpt::Runtime>);

namespace {

int failures = 0;

void expect(bool condition, const char *what) {
    if (!condition) {
        std::fprintf(stderr, "FAILED: %s\n", what);
        ++failures;
    }
}

template <typename Work>
dpt_status status_of(const Work &work) {
    try {
        work();
    } catch (const dpt::Error &error) {
        expect(std::strlen(error.what()) > 10, "an error has a message");
        return error.status();
    }
    return DPT_OK;
}

} // namespace

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    expect(status_of([] { dpt::Runtime("/no/such/bundle"); }) == DPT_BAD_BUNDLE, "missing bundle");

    dpt::Runtime first(argv[1]);
    const dpt::Runtime runtime = std::move(first);
    expect(runtime.has_depth() && runtime.has_normals() && runtime.has_alpha(), "all heads");
    expect(runtime.contract_json().find("\"input_size\"") != std::string::npos, "contract");
    expect(runtime.reason().find(runtime.backend()) == 0, "the reason begins with the backend");

    const int height = 37, width = 53;
    std::vector<std::uint8_t> pixels(3 * height * width);
    for (std::size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<std::uint8_t>(i * 7);
    const dpt::Image image{pixels.data(), height, width};
    const dpt::Maps maps = runtime.infer(image);
    expect(maps.depth.size() == 37 * 53 && maps.normals.size() == 3 * 37 * 53, "sizes of the maps");

    std::vector<float> alpha(37 * 53);
    runtime.infer(image, {{}, {}, alpha}); // only one map
    expect(alpha == maps.alpha, "a single map equals the map of a full call");

    std::vector<float> small(10);
    expect(status_of([&] { runtime.infer(image, {small, {}, {}}); }) == DPT_BAD_INPUT, "buffer too small");
    expect(status_of([&] { runtime.infer(image, {}); }) == DPT_BAD_INPUT, "no map requested");
    expect(status_of([&] { runtime.infer({nullptr, 4, 4}); }) == DPT_BAD_INPUT, "pixels are NULL");
    expect(status_of([&] { runtime.infer({pixels.data(), -1, 4}); }) == DPT_BAD_INPUT, "negative height");
    expect(status_of([&] { runtime.infer_device(image, {alpha.data(), nullptr, nullptr}, nullptr); }) ==
               (runtime.backend() == "onnxruntime-cpu" ? DPT_CONTRACT_ERROR : DPT_OK),
           "device memory on the CPU");
    return failures != 0;
}
