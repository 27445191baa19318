// The interface that every backend implements: frames in, maps out.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "dpt_runtime.h"

namespace dpt_impl {

// A loaded frame graph. Thread-safe.
class Session {
public:
    virtual ~Session() = default;

    // Host memory to host memory. The caller has checked the arguments, except against an engine's profile.
    virtual void run(const dpt_frames &frames, const dpt_maps &maps) = 0;

    // Device memory to device memory, on the caller's CUDA stream. `frames` is packed RGB.
    virtual void run_device(const dpt_frames &frames, const dpt_maps &maps, void *stream) = 0;

    // A sentence: whether CUDA graphs are in use and, if not, why. "" if the backend has none. The sentence can change
    // from call to call, but takes only a few values.
    virtual std::string cuda_graph_status() const { return ""; }

    // The largest batch of frames of this size; nullopt if only memory limits it.
    virtual std::optional<std::int32_t> largest_batch(std::int32_t height, std::int32_t width) const {
        static_cast<void>(height), static_cast<void>(width);
        return std::nullopt;
    }
};

} // namespace dpt_impl
