#include "frames.h"

#include <cstring>
#include <limits>

#include "error.h"

namespace dpt_impl {
namespace {

constexpr std::int64_t kMaxBytes = std::numeric_limits<std::int64_t>::max() / 64; // leaves room for the float maps

std::int64_t bytes_per_pixel(std::int32_t format) {
    switch (format) {
    case DPT_RGB:
    case DPT_BGR: return 3;
    case DPT_RGBA:
    case DPT_BGRA: return 4;
    case DPT_GRAY: return 1;
    default: return 0;
    }
}

std::int64_t row_stride(const dpt_frames &frames) {
    return frames.row_stride != 0 ? frames.row_stride : bytes_per_pixel(frames.format) * frames.width;
}

std::int64_t frame_stride(const dpt_frames &frames) {
    return frames.frame_stride != 0 ? frames.frame_stride : row_stride(frames) * frames.height;
}

// `Red`, `Green` and `Blue` are the offsets of the channels in a pixel of `Size` bytes.
template <int Size, int Red, int Green, int Blue>
void convert_row(const std::uint8_t *source, std::uint8_t *destination, std::int32_t width) {
    for (std::int32_t x = 0; x < width; ++x, source += Size, destination += 3) {
        const std::uint8_t red = source[Red], green = source[Green], blue = source[Blue];
        destination[0] = red;
        destination[1] = green;
        destination[2] = blue;
    }
}

void copy_row(const std::uint8_t *source, std::uint8_t *destination, std::int32_t width) {
    std::memcpy(destination, source, static_cast<std::size_t>(width) * 3);
}

} // namespace

void check_frames(const dpt_frames &frames) {
    if (frames.data == nullptr) fail(DPT_BAD_INPUT, "frames->data: expected a pointer to pixels, received NULL.");
    if (frames.batch < 1 || frames.height < 1 || frames.width < 1) {
        fail(DPT_BAD_INPUT, "frames: expected a batch, height and width of at least 1, received ", frames.batch, ", ",
             frames.height, " and ", frames.width, ".");
    }
    const std::int64_t size = bytes_per_pixel(frames.format);
    if (size == 0) {
        fail(DPT_BAD_INPUT, "frames->format: expected DPT_RGB (0), DPT_BGR (1), DPT_RGBA (2), DPT_BGRA (3) or "
                            "DPT_GRAY (4), received ", frames.format, ".");
    }
    const std::int64_t row = size * frames.width; // below 2^33
    if (frames.row_stride != 0 && frames.row_stride < row && frames.row_stride > -row) {
        fail(DPT_BAD_INPUT, "frames->row_stride: expected 0 or at least ", row, " bytes for a row of ", frames.width,
             " pixels, received ", frames.row_stride, ".");
    }
    std::int64_t bytes = 0, end = 0;
    if (__builtin_mul_overflow(row, static_cast<std::int64_t>(frames.height), &bytes) ||
        __builtin_mul_overflow(bytes, static_cast<std::int64_t>(frames.batch), &bytes) ||
        bytes > kMaxBytes || frames.row_stride > kMaxBytes || frames.row_stride < -kMaxBytes ||
        __builtin_mul_overflow(row_stride(frames), static_cast<std::int64_t>(frames.height), &end) ||
        __builtin_mul_overflow(frame_stride(frames), static_cast<std::int64_t>(frames.batch), &end) ||
        end > kMaxBytes || end < -kMaxBytes) {
        fail(DPT_BAD_INPUT, "frames: ", frames.batch, " frames of ", frames.height, "x", frames.width,
             " pixels with a row_stride of ", frames.row_stride, " and a frame_stride of ", frames.frame_stride,
             " bytes exceed the addressable memory.");
    }
}

std::size_t count_pixels(const dpt_frames &frames) {
    return static_cast<std::size_t>(frames.batch) * static_cast<std::size_t>(frames.height) *
           static_cast<std::size_t>(frames.width);
}

bool is_packed_rgb(const dpt_frames &frames) {
    const std::int64_t row = 3 * static_cast<std::int64_t>(frames.width);
    return frames.format == DPT_RGB && row_stride(frames) == row &&
           (frames.batch == 1 || frame_stride(frames) == row * frames.height);
}

void pack_rgb(const dpt_frames &frames, std::uint8_t *destination) {
    if (is_packed_rgb(frames)) {
        std::memcpy(destination, frames.data, count_pixels(frames) * 3);
        return;
    }
    auto *convert = copy_row;
    switch (frames.format) {
    case DPT_BGR: convert = convert_row<3, 2, 1, 0>; break;
    case DPT_RGBA: convert = convert_row<4, 0, 1, 2>; break;
    case DPT_BGRA: convert = convert_row<4, 2, 1, 0>; break;
    case DPT_GRAY: convert = convert_row<1, 0, 0, 0>; break;
    default: break;
    }
    for (std::int32_t n = 0; n < frames.batch; ++n) {
        for (std::int32_t y = 0; y < frames.height; ++y) {
            convert(frames.data + n * frame_stride(frames) + y * row_stride(frames), destination, frames.width);
            destination += 3 * static_cast<std::ptrdiff_t>(frames.width);
        }
    }
}

PackedFrames::PackedFrames(const dpt_frames &frames) : data_(frames.data) {
    if (is_packed_rgb(frames)) return;
    copy_.reset(new std::uint8_t[count_pixels(frames) * 3]); // not initialised, because pack_rgb() writes every byte
    pack_rgb(frames, copy_.get());
    data_ = copy_.get();
}

} // namespace dpt_impl
