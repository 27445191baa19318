// The function table of the module. No exception leaves this file.
#include <cstdio>
#include <exception>
#include <new>

#include "engine.h"

namespace {

using dpt_impl::Engine;

template <typename Work>
std::int32_t guarded(char *message, const Work &work) noexcept {
    try {
        work();
        return DPT_OK;
    } catch (const dpt_impl::Error &error) {
        std::snprintf(message, DPT_BACKEND_MESSAGE_SIZE, "%s", error.what());
        return error.status;
    } catch (const std::bad_alloc &) {
        std::snprintf(message, DPT_BACKEND_MESSAGE_SIZE, "out of host memory.");
        return DPT_OUT_OF_MEMORY;
    } catch (const std::exception &error) {
        std::snprintf(message, DPT_BACKEND_MESSAGE_SIZE, "internal error: %s.", error.what());
        return DPT_INTERNAL_ERROR;
    }
}

std::int32_t version(char *version, char *message) {
    return guarded(message, [&] {
        std::snprintf(version, 64, "%s", dpt_impl::TensorRtLibrary::get().version().c_str());
    });
}

std::int32_t open(const dpt_engine_desc *engine, void **session, char *message) {
    return guarded(message, [&] { *session = new Engine(*engine); });
}

std::int32_t run(void *session, const dpt_frames *frames, const dpt_maps *maps, char *message) {
    return guarded(message, [&] { static_cast<Engine *>(session)->run(*frames, *maps); });
}

std::int32_t run_device(void *session, const dpt_frames *frames, const dpt_maps *maps, void *stream, char *message) {
    return guarded(message, [&] {
        static_cast<Engine *>(session)->run_device(*frames, *maps, static_cast<cudaStream_t>(stream));
    });
}

void cuda_graph_status(void *session, char *message) {
    std::snprintf(message, DPT_BACKEND_MESSAGE_SIZE, "%s", static_cast<Engine *>(session)->cuda_graph_status().c_str());
}

void close(void *session) { delete static_cast<Engine *>(session); }

} // namespace

extern "C" const dpt_backend_api *dpt_backend_table(void) {
    static const dpt_backend_api table = {DPT_BACKEND_ABI, version, open, run, run_device, cuda_graph_status, close};
    return &table;
}
