// dpt_predict BUNDLE IMAGE OUTPUT: predict the maps of a PNG or JPEG image.
//
// Writes OUTPUT.png, the image and its maps side by side, and the raw maps OUTPUT.depth.npy, OUTPUT.normals.npy and
// OUTPUT.alpha.npy: float32, in the units of dpt_runtime.h, for numpy.load.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <dpt_runtime.hpp>

#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_ONLY_PNG
#define STBI_ONLY_JPEG
#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STB_IMAGE_WRITE_STATIC
#if defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wunused-function"
#endif
#include <stb_image.h>
#include <stb_image_write.h>

namespace {

using RgbImage = std::vector<std::uint8_t>; // (H, W, 3)

std::uint8_t to_byte(float x) { return static_cast<std::uint8_t>(std::clamp(x, 0.0F, 1.0F) * 255.0F + 0.5F); }

// Near is bright, far is dark. The nearest and farthest 2 % of the pixels are clipped.
RgbImage colour_depth(const std::vector<float> &depth) {
    std::vector<float> sorted = depth;
    std::sort(sorted.begin(), sorted.end());
    const float near = sorted[sorted.size() / 50], far = sorted[sorted.size() - 1 - sorted.size() / 50];
    RgbImage image;
    for (const float z : depth) image.insert(image.end(), 3, to_byte((far - z) / std::max(far - near, 1e-6F)));
    return image;
}

RgbImage colour_normals(const std::vector<float> &normals) {
    RgbImage image;
    for (const float component : normals) image.push_back(to_byte(component * 0.5F + 0.5F));
    return image;
}

RgbImage colour_alpha(const std::vector<float> &alpha) {
    RgbImage image;
    for (const float coverage : alpha) image.insert(image.end(), 3, to_byte(coverage));
    return image;
}

// Writes NumPy's .npy format, version 1.0: magic, header length, header padded to 64 bytes, data.
void write_npy(const std::string &path, const std::vector<float> &values, const std::string &shape) {
    std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (" + shape + "), }";
    header.resize((10 + header.size()) / 64 * 64 + 64 - 10, ' ');
    header.back() = '\n';
    std::ofstream file(path, std::ios::binary);
    file.write("\x93NUMPY\x01\x00", 8);
    const char length[2] = {static_cast<char>(header.size() & 255U), static_cast<char>(header.size() >> 8U)};
    file.write(length, 2);
    file << header;
    file.write(reinterpret_cast<const char *>(values.data()), static_cast<std::streamsize>(values.size() * 4));
    file.close();
    if (!file) throw std::runtime_error("cannot write " + path + ". Choose another output path.");
}

void run(const std::string &bundle, const std::string &input, const std::string &output) {
    const dpt::Runtime runtime(bundle);
    std::printf("%s\n", runtime.reason().c_str());
    int width = 0, height = 0, channels = 0;
    const std::unique_ptr<stbi_uc, void (*)(void *)> pixels(stbi_load(input.c_str(), &width, &height, &channels, 3),
                                                            stbi_image_free);
    if (!pixels) throw std::runtime_error(input + ": expected a PNG or JPEG image (" + stbi_failure_reason() + ").");
    const dpt::Maps maps = runtime.infer({pixels.get(), height, width});

    std::vector<RgbImage> images = {RgbImage(pixels.get(), pixels.get() + std::size_t{3} * height * width)};
    const std::string shape = std::to_string(height) + ", " + std::to_string(width);
    if (runtime.has_depth()) {
        images.push_back(colour_depth(maps.depth));
        write_npy(output + ".depth.npy", maps.depth, shape);
    }
    if (runtime.has_normals()) {
        images.push_back(colour_normals(maps.normals));
        write_npy(output + ".normals.npy", maps.normals, shape + ", 3");
    }
    if (runtime.has_alpha()) {
        images.push_back(colour_alpha(maps.alpha));
        write_npy(output + ".alpha.npy", maps.alpha, shape);
    }
    RgbImage panel;
    const std::ptrdiff_t row = std::ptrdiff_t{3} * width;
    for (int y = 0; y < height; ++y) {
        for (const RgbImage &image : images) {
            panel.insert(panel.end(), image.begin() + y * row, image.begin() + (y + 1) * row);
        }
    }
    const int panel_width = width * static_cast<int>(images.size());
    if (stbi_write_png((output + ".png").c_str(), panel_width, height, 3, panel.data(), panel_width * 3) == 0) {
        throw std::runtime_error("cannot write " + output + ".png. Choose another output path.");
    }
    std::printf("wrote %s.png and the raw maps beside it\n", output.c_str());
}

} // namespace

int main(int argc, char **argv) {
    if (argc != 4) {
        std::fprintf(stderr, "usage: %s BUNDLE IMAGE OUTPUT\n", argv[0]);
        return 2;
    }
    try {
        run(argv[1], argv[2], argv[3]);
        return 0;
    } catch (const std::exception &error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
