// dpt_predict BUNDLE IMAGE OUTPUT: PNG or JPEG in; OUTPUT.png (the picture and its maps side by side) and raw maps,
// OUTPUT.depth.npy and so on, float32 as dpt_runtime.h describes them, out. numpy.load reads the latter.
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

using Channels = std::vector<std::uint8_t>; // (H, W, 3)

std::uint8_t byte(float x) { return static_cast<std::uint8_t>(std::clamp(x, 0.0F, 1.0F) * 255.0F + 0.5F); }

// Near is bright; the nearest and farthest two percent are cut off.
Channels picture_of_depth(const std::vector<float> &depth) {
    std::vector<float> sorted = depth;
    std::sort(sorted.begin(), sorted.end());
    const float near = sorted[sorted.size() / 50], far = sorted[sorted.size() - 1 - sorted.size() / 50];
    Channels picture;
    for (const float z : depth) picture.insert(picture.end(), 3, byte((far - z) / std::max(far - near, 1e-6F)));
    return picture;
}

Channels picture_of_normals(const std::vector<float> &normals) {
    Channels picture;
    for (const float component : normals) picture.push_back(byte(component * 0.5F + 0.5F));
    return picture;
}

Channels picture_of_alpha(const std::vector<float> &alpha) {
    Channels picture;
    for (const float coverage : alpha) picture.insert(picture.end(), 3, byte(coverage));
    return picture;
}

// NumPy's format, version 1.0: magic, length of the header, header padded to 64 bytes, data.
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
    if (!file) throw std::runtime_error("cannot write " + path + ". Choose another place.");
}

void run(const std::string &bundle, const std::string &input, const std::string &output) {
    const dpt::Runtime runtime(bundle);
    std::printf("%s\n", runtime.reason().c_str());
    int width = 0, height = 0, channels = 0;
    const std::unique_ptr<stbi_uc, void (*)(void *)> pixels(stbi_load(input.c_str(), &width, &height, &channels, 3),
                                                            stbi_image_free);
    if (!pixels) throw std::runtime_error(input + ": expected a PNG or JPEG image: " + stbi_failure_reason() + ".");
    const dpt::Maps maps = runtime.infer({pixels.get(), height, width});

    std::vector<Channels> pictures = {Channels(pixels.get(), pixels.get() + std::size_t{3} * height * width)};
    const std::string shape = std::to_string(height) + ", " + std::to_string(width);
    if (runtime.has_depth()) {
        pictures.push_back(picture_of_depth(maps.depth));
        write_npy(output + ".depth.npy", maps.depth, shape);
    }
    if (runtime.has_normals()) {
        pictures.push_back(picture_of_normals(maps.normals));
        write_npy(output + ".normals.npy", maps.normals, shape + ", 3");
    }
    if (runtime.has_alpha()) {
        pictures.push_back(picture_of_alpha(maps.alpha));
        write_npy(output + ".alpha.npy", maps.alpha, shape);
    }
    Channels panel;
    const std::ptrdiff_t row = std::ptrdiff_t{3} * width;
    for (int y = 0; y < height; ++y) {
        for (const Channels &picture : pictures) {
            panel.insert(panel.end(), picture.begin() + y * row, picture.begin() + (y + 1) * row);
        }
    }
    const int panel_width = width * static_cast<int>(pictures.size());
    if (stbi_write_png((output + ".png").c_str(), panel_width, height, 3, panel.data(), panel_width * 3) == 0) {
        throw std::runtime_error("cannot write " + output + ".png. Choose another place.");
    }
    std::printf("%s.png and the raw maps beside it\n", output.c_str());
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
