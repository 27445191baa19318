// Converts the caller's frames to what the graph expects: packed RGB, uint8 (N, H, W, 3) without padding.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "dpt_runtime.h"

namespace dpt_impl {

// Throws Error(DPT_BAD_INPUT) if a field is invalid or the total size overflows.
void check_frames(const dpt_frames &frames);

// The number of pixels in all frames. Does not overflow after check_frames().
std::size_t count_pixels(const dpt_frames &frames);

// Whether the frames are packed RGB already.
bool is_packed_rgb(const dpt_frames &frames);

// Writes the frames as packed RGB to `destination`: 3 * count_pixels(frames) bytes.
void pack_rgb(const dpt_frames &frames, std::uint8_t *destination);

// The frames as packed RGB: the caller's memory if it is packed RGB already, otherwise a converted copy.
class PackedFrames {
public:
    explicit PackedFrames(const dpt_frames &frames);
    const std::uint8_t *data() const { return data_; }

private:
    std::unique_ptr<std::uint8_t[]> copy_;
    const std::uint8_t *data_;
};

} // namespace dpt_impl
