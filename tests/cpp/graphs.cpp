// graphs LIBRARY FOLDER: tests the TensorRT module with the fake of TensorRT and CUDA in LIBRARY.
//
// Checks when CUDA graphs are captured, replayed and destroyed, that all maps are correct, and that with TensorRT-RTX
// the compiled kernels are written to FOLDER.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include <cuda_runtime_api.h>

#include "backend.h"
#include "fake_tensorrt.h"

namespace {

int failures = 0;
FakeTensorRt &fake = *fake_tensorrt();
const dpt_backend_api &api = *dpt_backend_table();

#define EXPECT(condition)                                                                                              \
    if (!(condition)) {                                                                                                \
        std::fprintf(stderr, "FAILED, line %d: %s\n", __LINE__, #condition);                                           \
        ++failures;                                                                                                    \
    }

struct Session {
    explicit Session(const std::string &cache = "", bool no_graph = false) {
        const dpt_engine_desc engine = {"PLAN", 4, "toy.engine", cache.c_str(), 7, 0, no_graph ? 1 : 0, 0};
        status = api.open(&engine, &handle, message);
        fake.enqueued = fake.captured = fake.replayed = 0;
        EXPECT(status != DPT_OK || fake.contexts_made == 1);
    }
    ~Session() {
        if (handle != nullptr) api.close(handle);
        EXPECT(fake.contexts == 0 && fake.graphs == 0 && fake.allocations == 0);
        if (!fake.violations.empty()) std::fprintf(stderr, "FAILED: %s\n", fake.violations.c_str()), ++failures;
        fake = FakeTensorRt();
    }

    std::string cuda_graph_status() {
        api.cuda_graph_status(handle, message);
        return message;
    }

    // Runs random BGR pixels and checks the maps.
    void run(int height, int width, bool normals = true) {
        const std::size_t count = static_cast<std::size_t>(height * width);
        std::vector<unsigned char> pixels(count * 3);
        for (unsigned char &value : pixels) value = static_cast<unsigned char>(std::rand());
        std::vector<float> depth(count), unit(count * 3), alpha(count);
        const dpt_frames frames = {pixels.data(), 1, height, width, DPT_BGR, 0, 0};
        const dpt_maps maps = {depth.data(), normals ? unit.data() : nullptr, alpha.data()};
        EXPECT(api.run(handle, &frames, &maps, message) == DPT_OK);
        std::size_t wrong = 0;
        for (std::size_t i = 0; i < count; ++i) {
            wrong += depth[i] != static_cast<float>(pixels[3 * i + 2] + 1);
            wrong += alpha[i] != static_cast<float>(pixels[3 * i + 1]) / 255;
            wrong += unit[3 * i + 2] != (normals ? 1.0F : 0.0F);
        }
        EXPECT(wrong == 0);
    }

    void run_device(int height, int width, std::uintptr_t stream = 0) {
        const std::size_t count = static_cast<std::size_t>(height * width);
        void *pixels = nullptr, *depth = nullptr;
        cudaMalloc(&pixels, 3 * count), cudaMalloc(&depth, 4 * count);
        std::memset(pixels, 9, 3 * count);
        const dpt_frames frames = {static_cast<unsigned char *>(pixels), 1, height, width, DPT_RGB, 0, 0};
        const dpt_maps maps = {static_cast<float *>(depth), nullptr, nullptr};
        EXPECT(api.run_device(handle, &frames, &maps, reinterpret_cast<void *>(stream), message) == DPT_OK);
        EXPECT(*static_cast<float *>(depth) == 10);
        cudaFree(pixels), cudaFree(depth);
    }

    // Runs the engine and returns whether that replayed a graph.
    bool replays(int height, int width, bool normals = true) {
        const int before = fake.replayed;
        run(height, width, normals);
        return fake.replayed > before;
    }

    void *handle = nullptr;
    int status = DPT_OK;
    char message[DPT_BACKEND_MESSAGE_SIZE] = "";
};

void test_errors_are_reported() {
    setenv("FAKE_DESERIALIZE_FAILS", "1", 1);
    Session session;
    unsetenv("FAKE_DESERIALIZE_FAILS");
    const std::string message = session.message;
    EXPECT(session.status == DPT_BACKEND_ERROR && message.find("line 79") != std::string::npos);
    EXPECT(message.find("line 30;") != std::string::npos && message.find("line 29;") == std::string::npos);
}

void test_no_scratch_memory() {
    Session session;
    session.run(8, 8);
    fake.fail_scratch = true;
    unsigned char pixels[6 * 6 * 3] = {};
    float depth[6 * 6] = {};
    const dpt_frames frames = {pixels, 1, 6, 6, DPT_RGB, 0, 0};
    const dpt_maps maps = {depth, nullptr, nullptr};
    EXPECT(api.run(session.handle, &frames, &maps, session.message) == DPT_BACKEND_ERROR);
    EXPECT(std::string(session.message) ==
           "toy.engine could not compute the size of its scratch memory: no partition.");
    EXPECT(api.run_device(session.handle, &frames, &maps, nullptr, session.message) == DPT_BACKEND_ERROR);
    fake.fail_scratch = false;
    session.run(6, 6);
}

void test_streams_of_the_caller() {
    Session session;
    for (const std::uintptr_t stream : {0U, 1U, 2U}) { // default streams, which TensorRT would synchronise
        session.run_device(8, 8, stream);
        fake.stream_log.clear();
        session.run_device(8, 8, stream);
        const std::string name = std::to_string(stream);
        EXPECT(fake.stream_log == "7 waits for " + name + "; 7 waits for 7; runs on 7; " + name + " waits for 7; ");
    }
    fake.stream_log.clear();
    session.run_device(8, 8, 9);
    EXPECT(fake.stream_log == "9 waits for 7; runs on 9; ");
    fake.stream_log.clear();
    session.run(8, 8); // uses the same buffers as the work on stream 9
    EXPECT(fake.stream_log.rfind("7 waits for 9; runs on 7; ", 0) == 0);
}

#if defined(FAKE_TENSORRT_RTX)

void test_runtime_cache(const std::string &folder) {
    const std::string file = folder + "/toy.engine.cache";
    const auto content = [&] {
        std::ifstream stream(file);
        return std::string(std::istreambuf_iterator<char>(stream), {});
    };
    {
        Session session(file);
        EXPECT(session.cuda_graph_status() ==
               "CUDA graphs: captured by TensorRT-RTX if it can capture the first call.");
        for (int i = 0; i < 3; ++i) session.run(8, 8);
        EXPECT(session.cuda_graph_status() == "CUDA graphs: captured by TensorRT-RTX.");
        fake.capturable = false;
        session.run(8, 8);
        EXPECT(session.cuda_graph_status() == "No CUDA graphs: TensorRT-RTX cannot capture this engine's work.");
        EXPECT(fake.captured == 0 && fake.enqueued == 4);
        fake.cache = "kernels";
    }
    EXPECT(content() == "kernels");
    {
        Session session(file);
        EXPECT(fake.cache == "kernels");
        std::remove(file.c_str()); // an unchanged cache is not written again
    }
    EXPECT(content().empty());
    {
        Session session(folder + "/no_such_folder/cache");
        session.run(8, 8);
        fake.cache = "kernels";
    }
    fake.fail_capture = true;
    Session session(file);
    EXPECT(session.cuda_graph_status() ==
           "No CUDA graphs: TensorRT-RTX cannot capture them: graphs are not supported.");
    session.run(8, 8);
}

#else

constexpr int kSlots = 8;

// The number of things created since the previous call of this function: contexts, allocations and graphs.
int count_made() {
    const int made = fake.contexts_made + fake.allocations_made + fake.captured;
    fake.contexts_made = fake.allocations_made = fake.captured = 0;
    return made;
}

void test_sizes_that_never_return_share_everything() {
    Session session;
    fake.allocations_made = 0;
    for (int i = 0; i < 50; ++i) EXPECT(!session.replays(10 + i, 12 + i));
    // Nine buffers grow by half or more, from 120 to 3599 pixels.
    EXPECT(fake.contexts_made == 1 && fake.captured == 0 && fake.allocations_made <= 9 * 10);
    const int made = fake.allocations_made;
    for (int i = 40; i > 0; --i) EXPECT(!session.replays(i + 5, i + 6, i % 2 == 0));
    EXPECT(fake.contexts_made == 1 && fake.captured == 0 && fake.allocations_made == made);
}

void test_sizes_in_turn_are_captured_once() {
    Session session;
    EXPECT(session.cuda_graph_status() == "CUDA graphs: used for host memory, from the third call of each size on.");
    for (int turn = 0; turn < 2; ++turn) {
        for (int i = 0; i < kSlots; ++i) EXPECT(!session.replays(8 + 2 * i, 8 + i));
    }
    EXPECT(fake.captured == kSlots && fake.graphs == kSlots && fake.contexts == kSlots + 1);
    count_made();
    for (int i = 0; i < 10 * kSlots; ++i) EXPECT(session.replays(8 + 2 * (i % kSlots), 8 + i % kSlots));
    EXPECT(count_made() == 0);
}

void test_more_sizes_in_turn_than_slots() {
    Session session;
    const int sizes = kSlots + 3;
    for (int i = 0; i < 2 * sizes; ++i) session.run(8 + i % sizes, 8);
    count_made();
    fake.replayed = 0;
    for (int i = 0; i < 10 * sizes; ++i) session.run(8 + i % sizes, 8);
    EXPECT(count_made() == 0 && fake.replayed == 10 * kSlots);
}

void test_new_sizes_take_over_slots() {
    Session session;
    for (int i = 0; i < 2 * kSlots; ++i) session.run(40 + i / 2, 8);
    count_made();
    for (int i = 0; i < kSlots; ++i) {
        EXPECT(!session.replays(8 + i, 8) && !session.replays(8 + i, 8) && session.replays(8 + i, 8));
        EXPECT(count_made() == 1 && fake.graphs == kSlots && fake.contexts == kSlots + 1);
    }
    session.run(8, 8); // the least recently used height is now 9
    session.run(4, 8), session.run(4, 8);
    EXPECT(session.replays(8, 8) && session.replays(4, 8) && !session.replays(9, 8));
}

void test_no_memory_for_a_slot() {
    {
        Session session;
        session.run(8, 8), session.run(6, 6), session.run(6, 6);
        fake.largest = 100;
        for (int i = 0; i < 3; ++i) EXPECT(!session.replays(8, 8) && session.replays(6, 6));
        EXPECT(fake.contexts == 2);
    }
    Session session;
    session.run(8, 8);
    fake.largest = 100;
    for (int i = 0; i < 3; ++i) EXPECT(!session.replays(8, 8));
    EXPECT(session.cuda_graph_status() == "No CUDA graphs: CUDA: cudaMallocHost failed (2): an error.");
}

void test_a_buffer_grows_by_half_if_there_is_room() {
    Session session;
    session.run(10, 10);
    count_made();
    session.run(10, 11);
    EXPECT(count_made() == 9); // grow to 150 pixels
    session.run(10, 15);
    EXPECT(count_made() == 0);
    fake.largest = 160 * 12; // normals of 160 pixels
    session.run(10, 16);
    EXPECT(count_made() == 9);
}

void test_capture_and_replay() {
    Session session;
    EXPECT(!session.replays(8, 8) && !session.replays(8, 8) && session.replays(8, 8));
    EXPECT(fake.captured == 1 && fake.enqueued == 3);
    EXPECT(!session.replays(8, 8, false) && !session.replays(8, 8, false) && session.replays(8, 8, false));
    EXPECT(session.replays(8, 8));
}

void test_device_memory_between_host_calls() {
    Session session;
    session.run(8, 8);
    session.run_device(6, 6);
    session.run(8, 8);
    EXPECT(session.replays(8, 8));
    session.run_device(4, 4);
    EXPECT(session.replays(8, 8));
    session.run_device(16, 16); // the scratch memory grows, which destroys all graphs
    EXPECT(fake.graphs == 0);
    EXPECT(!session.replays(8, 8) && session.replays(8, 8));
}

void test_disabled_graphs() {
    {
        Session session("", true);
        EXPECT(session.cuda_graph_status() == "No CUDA graphs: disabled by no_cuda_graph.");
        for (int i = 0; i < 3; ++i) EXPECT(!session.replays(8, 8));
        EXPECT(fake.captured == 0 && fake.contexts == 1);
    }
    Session session;
    session.run(8, 8);
    fake.fail_capture = true;
    for (int i = 0; i < 3; ++i) EXPECT(!session.replays(8, 8));
    EXPECT(fake.captured == 1);
    EXPECT(session.cuda_graph_status() ==
           "No CUDA graphs: capture failed: toy.engine could not run: not while capturing.");
}

#endif

} // namespace

int main(int count, char **arguments) {
    if (count != 3) return 2;
    setenv("DPT_TENSORRT_LIBRARY", arguments[1], 1);
    setenv("DPT_TENSORRT_RTX_LIBRARY", arguments[1], 1);
    setenv("DPT_CUDART_LIBRARY", arguments[1], 1);
    test_errors_are_reported();
    test_streams_of_the_caller();
    test_no_scratch_memory();
#if defined(FAKE_TENSORRT_RTX)
    test_runtime_cache(arguments[2]);
#else
    test_capture_and_replay();
    test_sizes_that_never_return_share_everything();
    test_sizes_in_turn_are_captured_once();
    test_more_sizes_in_turn_than_slots();
    test_new_sizes_take_over_slots();
    test_no_memory_for_a_slot();
    test_a_buffer_grows_by_half_if_there_is_room();
    test_device_memory_between_host_calls();
    test_disabled_graphs();
#endif
    std::printf("%d failures\n", failures);
    return failures != 0;
}
