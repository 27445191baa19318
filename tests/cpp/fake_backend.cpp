// A fake backend module that needs no GPU: depth is red + 1, normals are (0, 0, 1), alpha is green / 255.
//
// Environment variables control it: FAKE_VERSION is the version of TensorRT, FAKE_OPEN and FAKE_RUN are the errors with
// which opening and running fail, FAKE_CUDA_GRAPH_STATUS is the sentence about CUDA graphs.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "backend.h"
#include "frames.h"

namespace {

int open_sessions = 0;

const char *variable(const char *name) { return std::getenv(name); }

std::int32_t version(char *version, char *) {
    const char *value = variable("FAKE_VERSION");
    std::snprintf(version, 64, "%s", value != nullptr ? value : "11.4.0.23");
    return DPT_OK;
}

std::int32_t open(const dpt_engine_desc *engine, void **session, char *message) {
    if (const char *error = variable("FAKE_OPEN")) {
        std::snprintf(message, DPT_BACKEND_MESSAGE_SIZE, "%s could not be loaded: %s.", engine->file, error);
        return DPT_BACKEND_ERROR;
    }
    if (engine->bytes < 4 || std::memcmp(engine->plan, "PLAN", 4) != 0) return DPT_INTERNAL_ERROR;
    ++open_sessions;
    *session = &open_sessions;
    return DPT_OK;
}

std::int32_t compute(const std::uint8_t *rgb, const dpt_frames *frames, const dpt_maps *maps, char *message) {
    if (const char *error = variable("FAKE_RUN")) {
        std::snprintf(message, DPT_BACKEND_MESSAGE_SIZE, "could not run: %s.", error);
        return DPT_BACKEND_ERROR;
    }
    const long pixels = static_cast<long>(frames->batch) * frames->height * frames->width;
    for (long i = 0; i < pixels; ++i) {
        const std::uint8_t *pixel = rgb + 3 * i;
        if (maps->depth != nullptr) maps->depth[i] = static_cast<float>(pixel[0]) + 1;
        if (maps->normals != nullptr) {
            maps->normals[3 * i] = maps->normals[3 * i + 1] = 0;
            maps->normals[3 * i + 2] = 1;
        }
        if (maps->alpha != nullptr) maps->alpha[i] = static_cast<float>(pixel[1]) / 255;
    }
    return DPT_OK;
}

std::int32_t run(void *, const dpt_frames *frames, const dpt_maps *maps, char *message) {
    std::vector<std::uint8_t> rgb(dpt_impl::count_pixels(*frames) * 3);
    dpt_impl::pack_rgb(*frames, rgb.data());
    return compute(rgb.data(), frames, maps, message);
}

std::int32_t run_device(void *, const dpt_frames *frames, const dpt_maps *maps, void *stream, char *message) {
    if (stream != reinterpret_cast<void *>(0x5)) return DPT_INTERNAL_ERROR; // the stream that the test passes
    return compute(frames->data, frames, maps, message);
}

void cuda_graph_status(void *, char *message) {
    const char *value = variable("FAKE_CUDA_GRAPH_STATUS");
    std::snprintf(message, DPT_BACKEND_MESSAGE_SIZE, "%s", value != nullptr ? value : "");
}

void close(void *) { --open_sessions; }

} // namespace

extern "C" const dpt_backend_api *dpt_backend_table(void) {
    static const dpt_backend_api table = {DPT_BACKEND_ABI, version, open, run, run_device, cuda_graph_status, close};
    return &table;
}
