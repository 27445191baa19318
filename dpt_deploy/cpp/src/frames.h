// Frames as the caller has them, and as the graph wants them: uint8 (N, H, W, 3) RGB without padding.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "dpt_runtime.h"

namespace dpt_impl {

// Throws Error(DPT_BAD_INPUT) unless `frames` describes memory that can be read.
void check_frames(const dpt_frames &frames);

// Pixels of all frames together; they fit after check_frames.
std::size_t count_pixels(const dpt_frames &frames);

// Whether the memory is RGB without padding already.
bool is_packed_rgb(const dpt_frames &frames);

// Writes the frames to `to` as packed RGB: 3 * count_pixels(frames) bytes.
void pack_rgb(const dpt_frames &frames, std::uint8_t *to);

// The frames as packed RGB: the caller's memory where it is that already, a converted copy otherwise.
class PackedFrames {
public:
    explicit PackedFrames(const dpt_frames &frames);
    const std::uint8_t *data() const { return data_; }

private:
    std::unique_ptr<std::uint8_t[]> copy_;
    const std::uint8_t *data_;
};

} // namespace dpt_impl
