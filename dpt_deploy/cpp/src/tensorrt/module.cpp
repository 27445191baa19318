// The table that libdpt_runtime reads. No exception leaves this file.
#include <cstdio>
#include <exception>
#include <new>

#include "engine.h"

namespace {

using dpt_impl::Engine;

template <typename Work>
std::int32_t guarded(char *words, const Work &work) noexcept {
    try {
        work();
        return DPT_OK;
    } catch (const dpt_impl::Error &error) {
        std::snprintf(words, DPT_BACKEND_WORDS, "%s", error.what());
        return error.status;
    } catch (const std::bad_alloc &) {
        std::snprintf(words, DPT_BACKEND_WORDS, "host memory ran out.");
        return DPT_OUT_OF_MEMORY;
    } catch (const std::exception &error) {
        std::snprintf(words, DPT_BACKEND_WORDS, "unexpected: %s.", error.what());
        return DPT_INTERNAL_ERROR;
    }
}

std::int32_t version(char *version, char *words) {
    return guarded(words, [&] { std::snprintf(version, 64, "%s", dpt_impl::Builder::get().version().c_str()); });
}

std::int32_t open(const dpt_engine_order *order, void **session, char *words) {
    return guarded(words, [&] { *session = new Engine(*order); });
}

std::int32_t run(void *session, const dpt_frames *frames, const dpt_maps *maps, char *words) {
    return guarded(words, [&] { static_cast<Engine *>(session)->run(*frames, *maps); });
}

std::int32_t run_device(void *session, const dpt_frames *frames, const dpt_maps *maps, void *stream, char *words) {
    return guarded(words, [&] {
        static_cast<Engine *>(session)->run_device(*frames, *maps, static_cast<cudaStream_t>(stream));
    });
}

void note(void *session, char *words) {
    std::snprintf(words, DPT_BACKEND_WORDS, "%s", static_cast<Engine *>(session)->note().c_str());
}

void close(void *session) { delete static_cast<Engine *>(session); }

} // namespace

extern "C" const dpt_backend_api *dpt_backend_table(void) {
    static const dpt_backend_api table = {DPT_BACKEND_ABI, version, open, run, run_device, note, close};
    return &table;
}
