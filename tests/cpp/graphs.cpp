// graphs LIBRARY FOLDER: the TensorRT module on the stand-in in LIBRARY. When it captures, replays and forgets CUDA
// graphs, that the maps are right each time, and with TensorRT-RTX that compiled kernels are kept in FOLDER.
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
#include "standin.h"

namespace {

int failures = 0;
Standin &told = *standin();
const dpt_backend_api &api = *dpt_backend_table();

#define EXPECT(condition)                                                                                              \
    if (!(condition)) {                                                                                                \
        std::fprintf(stderr, "FAILED, line %d: %s\n", __LINE__, #condition);                                           \
        ++failures;                                                                                                    \
    }

struct Session {
    explicit Session(const std::string &cache = "", bool no_graph = false) {
        const dpt_engine_order order = {"PLAN", 4, "toy.engine", cache.c_str(), 7, 0, no_graph ? 1 : 0, 0};
        status = api.open(&order, &handle, words);
        told.enqueued = told.captured = told.replayed = 0;
    }
    ~Session() {
        if (handle != nullptr) api.close(handle);
        EXPECT(told.contexts == 0 && told.graphs == 0 && told.memory == 0);
        if (!told.broken.empty()) std::fprintf(stderr, "FAILED: %s\n", told.broken.c_str()), ++failures;
        told = Standin();
    }

    std::string note() {
        api.note(handle, words);
        return words;
    }

    // One call with new BGR pixels, whose maps must be right.
    void run(int height, int width, bool normals = true) {
        const std::size_t count = static_cast<std::size_t>(height * width);
        std::vector<unsigned char> pixels(count * 3);
        for (unsigned char &value : pixels) value = static_cast<unsigned char>(std::rand());
        std::vector<float> depth(count), unit(count * 3), alpha(count);
        const dpt_frames frames = {pixels.data(), 1, height, width, DPT_BGR, 0, 0};
        const dpt_maps maps = {depth.data(), normals ? unit.data() : nullptr, alpha.data()};
        EXPECT(api.run(handle, &frames, &maps, words) == DPT_OK);
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
        EXPECT(api.run_device(handle, &frames, &maps, reinterpret_cast<void *>(stream), words) == DPT_OK);
        EXPECT(*static_cast<float *>(depth) == 10);
        cudaFree(pixels), cudaFree(depth);
    }

    // Whether a call replays a graph.
    bool replays(int height, int width, bool normals = true) {
        const int before = told.replayed;
        run(height, width, normals);
        return told.replayed > before;
    }

    void *handle = nullptr;
    int status = DPT_OK;
    char words[DPT_BACKEND_WORDS] = "";
};

void broken_engines() {
    setenv("STANDIN_REFUSES", "1", 1);
    Session session;
    unsetenv("STANDIN_REFUSES");
    const std::string words = session.words;
    EXPECT(session.status == DPT_BACKEND_ERROR && words.find("line 79") != std::string::npos);
    EXPECT(words.find("line 30;") != std::string::npos && words.find("line 29;") == std::string::npos);
}

void callers_streams() {
    Session session;
    for (const std::uintptr_t standard : {0U, 1U, 2U}) { // TensorRT would have the host wait around these
        session.run_device(8, 8, standard);
        told.order.clear();
        session.run_device(8, 8, standard);
        const std::string name = std::to_string(standard);
        EXPECT(told.order == "7 waits for " + name + "; 7 waits for 7; runs on 7; " + name + " waits for 7; ");
    }
    told.order.clear();
    session.run_device(8, 8, 9);
    EXPECT(told.order == "9 waits for 7; runs on 9; ");
    told.order.clear();
    session.run(8, 8); // the buffers are shared with the caller's stream
    EXPECT(told.order.rfind("7 waits for 9; runs on 7; ", 0) == 0);
}

#if defined(STANDIN_RTX)

void own_graphs(const std::string &folder) {
    const std::string file = folder + "/toy.engine.cache";
    const auto content = [&] {
        std::ifstream stream(file);
        return std::string(std::istreambuf_iterator<char>(stream), {});
    };
    {
        Session session(file);
        EXPECT(session.note() == "TensorRT-RTX captures CUDA graphs itself.");
        for (int i = 0; i < 3; ++i) session.run(8, 8);
        EXPECT(told.captured == 0 && told.enqueued == 3);
        told.compiled = "kernels";
    }
    EXPECT(content() == "kernels");
    {
        Session session(file);
        EXPECT(told.compiled == "kernels");
        std::remove(file.c_str()); // nothing is new: nothing is written
    }
    EXPECT(content().empty());
    {
        Session session(folder + "/no_such_folder/cache");
        session.run(8, 8);
        told.compiled = "kernels";
    }
    told.refuse_capture = true;
    Session session(file);
    EXPECT(session.note() == "No CUDA graph: TensorRT-RTX refuses to capture one, no graphs here.");
    session.run(8, 8);
}

#else

void sizes_take_turns() {
    Session session;
    EXPECT(session.note() == "Frames in host memory replay a CUDA graph from the second call of a size on.");
    for (int height = 8; height < 12; ++height) EXPECT(!session.replays(height, 8));
    for (int height = 8; height < 12; ++height) session.run(height, 8); // those that grew memory are at rest now
    for (int height = 8; height < 12; ++height) EXPECT(session.replays(height, 8));
    const int captured = told.captured;
    for (int i = 0; i < 8; ++i) EXPECT(session.replays(8 + i % 4, 8));
    EXPECT(told.captured == captured && told.graphs == 4);
    EXPECT(!session.replays(4, 8)); // the fifth takes the place of the first, 8
    EXPECT(session.replays(9, 8) && session.replays(4, 8) && told.contexts == 5);
    EXPECT(!session.replays(8, 8)); // in place of 10
    EXPECT(session.replays(11, 8) && session.replays(9, 8) && !session.replays(10, 8));
}

void one_size() {
    Session session;
    EXPECT(!session.replays(8, 8) && session.replays(8, 8) && session.replays(8, 8));
    EXPECT(told.captured == 1 && told.enqueued == 2);
    EXPECT(!session.replays(8, 8, false) && session.replays(8, 8, false) && session.replays(8, 8));
}

void device_memory_in_between() {
    Session session;
    session.run(8, 8);
    session.run_device(6, 6);
    EXPECT(session.replays(8, 8));
    session.run_device(4, 4);
    EXPECT(session.replays(8, 8));
    session.run_device(16, 16); // scratch memory moves: what was captured before is gone
    EXPECT(told.graphs == 0);
    EXPECT(!session.replays(8, 8) && session.replays(8, 8));
}

void no_graphs() {
    {
        Session session("", true);
        EXPECT(session.note() == "No CUDA graph: turned off by no_cuda_graph.");
        for (int i = 0; i < 3; ++i) EXPECT(!session.replays(8, 8));
        EXPECT(told.captured == 0 && told.contexts == 1);
    }
    Session session;
    session.run(8, 8);
    told.refuse_capture = true;
    for (int i = 0; i < 3; ++i) EXPECT(!session.replays(8, 8));
    EXPECT(told.captured == 1);
    EXPECT(session.note() ==
           "No CUDA graph: capturing one failed: toy.engine could not run: not while capturing.");
}

#endif

} // namespace

int main(int count, char **arguments) {
    if (count != 3) return 2;
    setenv("DPT_TENSORRT_LIBRARY", arguments[1], 1);
    setenv("DPT_TENSORRT_RTX_LIBRARY", arguments[1], 1);
    setenv("DPT_CUDART_LIBRARY", arguments[1], 1);
    broken_engines();
    callers_streams();
#if defined(STANDIN_RTX)
    own_graphs(arguments[2]);
#else
    one_size();
    sizes_take_turns();
    device_memory_in_between();
    no_graphs();
#endif
    std::printf("%d failures\n", failures);
    return failures != 0;
}
