// One small interface to every backend: packed frames in, maps out.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "dpt_runtime.h"

namespace dpt_impl {

// A loaded frame graph. Calls from many threads at a time are right.
class Session {
public:
    virtual ~Session() = default;

    // Host memory to host memory; arguments are checked against everything but the engine's profile.
    virtual void run(const dpt_frames &frames, const dpt_maps &maps) = 0;

    // Device memory to device memory, on a CUDA stream of the caller; `frames` is packed RGB.
    virtual void run_device(const dpt_frames &frames, const dpt_maps &maps, void *stream) = 0;

    // How CUDA graphs stand with it, as a sentence; "" for a backend without. It may change from call to call, and takes
    // a few values only.
    virtual std::string note() const { return ""; }

    // The largest batch of frames of this size; nothing where memory alone sets the limit.
    virtual std::optional<std::int32_t> largest_batch(std::int32_t height, std::int32_t width) const {
        static_cast<void>(height), static_cast<void>(width);
        return std::nullopt;
    }
};

} // namespace dpt_impl
