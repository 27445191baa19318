// threads BUNDLE: runs 8 threads on one handle, then on 8 handles, each with its own frames, and compares the maps with
// those of a single thread.
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>
#include <thread>
#include <vector>

#include <dpt_runtime.hpp>

namespace {

constexpr int kThreads = 8, kRounds = 4, kFormats = 5;
constexpr int kChannels[kFormats] = {3, 3, 4, 4, 1};

struct Work {
    std::vector<std::uint8_t> pixels;
    dpt::Image image;
    dpt::Maps expected;
    bool correct = true;
};

void fill(Work &work, int i) {
    work.image.height = 32 + 8 * i;
    work.image.width = 40 + 5 * (i % 3);
    work.image.format = static_cast<dpt::Pixels>(i % kFormats);
    work.pixels.resize(work.image.pixels() * static_cast<std::size_t>(kChannels[i % kFormats]));
    unsigned state = 12345U + static_cast<unsigned>(i);
    for (std::uint8_t &pixel : work.pixels) {
        state = state * 1664525U + 1013904223U;
        pixel = static_cast<std::uint8_t>(state >> 24U);
    }
    work.image.data = work.pixels.data();
}

void infer(const dpt::Runtime &runtime, Work &work, int i) {
    for (int round = 0; round < kRounds; ++round) {
        try {
            const dpt::Maps maps = runtime.infer(work.image);
            work.correct = work.correct && maps.depth == work.expected.depth && maps.normals == work.expected.normals &&
                         maps.alpha == work.expected.alpha;
            // An error message must come from the same thread.
            const dpt_frames bad = {work.pixels.data(), 1, -1 - i, 1, DPT_RGB, 0, 0};
            dpt_maps none{};
            const bool rejected = dpt_infer(runtime.handle(), &bad, &none) == DPT_BAD_INPUT;
            const std::string expected = ", " + std::to_string(-1 - i) + " and 1";
            work.correct = work.correct && rejected && std::strstr(dpt_last_error(), expected.c_str()) != nullptr;
        } catch (const std::exception &error) {
            std::fprintf(stderr, "%s\n", error.what());
            work.correct = false;
        }
    }
}

} // namespace

int main(int argc, char **argv) {
    try {
        if (argc != 2) throw std::runtime_error("usage: threads BUNDLE");
        dpt_options options = dpt_options_default();
        options.threads = 1;
        const dpt::Runtime shared(argv[1], options);
        std::vector<Work> works(kThreads);
        for (int i = 0; i < kThreads; ++i) {
            fill(works[static_cast<std::size_t>(i)], i);
            works[static_cast<std::size_t>(i)].expected = shared.infer(works[static_cast<std::size_t>(i)].image);
        }
        for (const bool one_handle : {true, false}) {
            std::vector<std::thread> threads;
            for (int i = 0; i < kThreads; ++i) {
                threads.emplace_back([&, i] {
                    Work &work = works[static_cast<std::size_t>(i)];
                    try {
                        if (one_handle) return infer(shared, work, i);
                        const dpt::Runtime own(argv[1], options);
                        infer(own, work, i);
                    } catch (const std::exception &error) {
                        std::fprintf(stderr, "%s\n", error.what());
                        work.correct = false;
                    }
                });
            }
            for (std::thread &thread : threads) thread.join();
        }
        int wrong = 0;
        for (const Work &work : works) wrong += work.correct ? 0 : 1;
        std::printf("%d threads, %d with a wrong result\n", kThreads, wrong);
        return wrong == 0 ? 0 : 1;
    } catch (const std::exception &error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
