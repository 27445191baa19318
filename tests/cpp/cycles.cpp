// cycles BUNDLE COUNT: repeats load, inference, failing calls and unload, over all pixel formats. For leak checkers.
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <vector>

#include <dpt_runtime.hpp>

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    try {
        const std::vector<std::uint8_t> pixels(4 * 48 * 48, 77);
        for (int i = 0; i < std::atoi(argv[2]); ++i) {
            dpt_options options = dpt_options_default();
            options.threads = 1;
            const dpt::Runtime runtime(argv[1], options);
            const dpt::Maps maps = runtime.infer({pixels.data(), 48, 48, static_cast<dpt::Pixels>(i % 5)});
            const dpt_frames bad = {pixels.data(), 0, 0, 0, 0, 0, 0};
            const dpt_maps none{};
            dpt_runtime *handle = nullptr;
            if (maps.depth.empty() || dpt_infer(runtime.handle(), &bad, &none) != DPT_BAD_INPUT ||
                dpt_load("/no/such/bundle", nullptr, &handle) != DPT_BAD_BUNDLE) {
                return 1;
            }
        }
        return 0;
    } catch (const std::exception &error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
