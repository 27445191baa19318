// A backend module without a GPU: depth is the red channel plus one, normals point at the viewer, alpha is green / 255.
// The environment says what it pretends: FAKE_VERSION, FAKE_OPEN (a message it refuses with), FAKE_RUN likewise,
// FAKE_NOTE (what it says of CUDA graphs).
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "backend.h"
#include "frames.h"

namespace {

int live = 0;

const char *setting(const char *name) { return std::getenv(name); }

std::int32_t version(char *version, char *) {
    const char *pretended = setting("FAKE_VERSION");
    std::snprintf(version, 64, "%s", pretended != nullptr ? pretended : "11.4.0.23");
    return DPT_OK;
}

std::int32_t open(const dpt_engine_order *order, void **session, char *words) {
    if (const char *why = setting("FAKE_OPEN")) {
        std::snprintf(words, DPT_BACKEND_WORDS, "%s cannot be loaded here: %s.", order->file, why);
        return DPT_BACKEND_ERROR;
    }
    if (order->bytes < 4 || std::memcmp(order->plan, "PLAN", 4) != 0) return DPT_INTERNAL_ERROR;
    ++live;
    *session = &live;
    return DPT_OK;
}

std::int32_t compute(const std::uint8_t *rgb, const dpt_frames *frames, const dpt_maps *maps, char *words) {
    if (const char *why = setting("FAKE_RUN")) {
        std::snprintf(words, DPT_BACKEND_WORDS, "could not run: %s.", why);
        return DPT_BACKEND_ERROR;
    }
    const long pixels = static_cast<long>(frames->batch) * frames->height * frames->width;
    for (long i = 0; i < pixels; ++i) {
        const std::uint8_t *pixel = rgb + 3 * i;
        if (maps->depth != nullptr) maps->depth[i] = static_cast<float>(pixel[0]) + 1;
        if (maps->normals != nullptr) maps->normals[3 * i] = 0, maps->normals[3 * i + 1] = 0, maps->normals[3 * i + 2] = 1;
        if (maps->alpha != nullptr) maps->alpha[i] = static_cast<float>(pixel[1]) / 255;
    }
    return DPT_OK;
}

std::int32_t run(void *, const dpt_frames *frames, const dpt_maps *maps, char *words) {
    std::vector<std::uint8_t> rgb(dpt_impl::count_pixels(*frames) * 3);
    dpt_impl::pack_rgb(*frames, rgb.data());
    return compute(rgb.data(), frames, maps, words);
}

std::int32_t run_device(void *, const dpt_frames *frames, const dpt_maps *maps, void *stream, char *words) {
    if (stream != reinterpret_cast<void *>(0x5)) return DPT_INTERNAL_ERROR; // the test's stream
    return compute(frames->data, frames, maps, words);
}

void note(void *, char *words) {
    const char *pretended = setting("FAKE_NOTE");
    std::snprintf(words, DPT_BACKEND_WORDS, "%s", pretended != nullptr ? pretended : "");
}

void close(void *) { --live; }

} // namespace

extern "C" const dpt_backend_api *dpt_backend_table(void) {
    static const dpt_backend_api table = {DPT_BACKEND_ABI, version, open, run, run_device, note, close};
    return &table;
}
