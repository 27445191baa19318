// parity BUNDLE GOLDEN.npz: compares the maps of this library with those of the Python runtime and of PyTorch.
//
// GOLDEN.npz contains frames in several sizes and pixel formats and their maps from the Python runtime, computed with
// the same ONNX Runtime, artefact and number of threads: the maps must be bit-identical. The bundle's reference.npz
// contains the parity images and their maps from PyTorch: the maps must agree within the FP32 budgets. The exit status
// is 1 on any difference.
#include <cmath>
#include <cstdio>
#include <exception>
#include <string>

#include <dpt_runtime.hpp>

#include "npz.h"

namespace {

int failures = 0;

void expect(bool condition, const std::string &message) {
    if (!condition) {
        std::printf("FAILED %s\n", message.c_str());
        ++failures;
    }
}

dpt::Image image_of(const Array &pixels, int format) {
    dpt::Image image;
    image.data = pixels.as<std::uint8_t>("|u1");
    image.batch = static_cast<std::int32_t>(pixels.shape[0]);
    image.height = static_cast<std::int32_t>(pixels.shape[1]);
    image.width = static_cast<std::int32_t>(pixels.shape[2]);
    image.format = static_cast<dpt::Pixels>(format);
    return image;
}

void compare_bits(const std::string &name, const std::vector<float> &found, const Array &expected) {
    const bool equal = found.size() * sizeof(float) == expected.bytes.size() && !found.empty() &&
                       std::memcmp(found.data(), expected.as<float>("<f4"), expected.bytes.size()) == 0;
    expect(equal, name + " is not bit-identical");
}

// Compares all cases and returns their number. Keys: cases/NAME/FORMAT/pixels, cases/NAME/FORMAT/depth and so on.
int check_golden(const dpt::Runtime &runtime, const std::map<std::string, Array> &golden) {
    int cases = 0;
    for (const auto &[key, pixels] : golden) {
        const std::string suffix = "/pixels";
        if (key.size() < suffix.size() || key.substr(key.size() - suffix.size()) != suffix) continue;
        const std::string name = key.substr(0, key.size() - suffix.size());
        const int format = std::stoi(name.substr(name.rfind('/') + 1));
        const dpt::Maps maps = runtime.infer(image_of(pixels, format));
        compare_bits(name + "/depth", maps.depth, golden.at(name + "/depth"));
        compare_bits(name + "/normals", maps.normals, golden.at(name + "/normals"));
        compare_bits(name + "/alpha", maps.alpha, golden.at(name + "/alpha"));
        ++cases;
    }
    return cases;
}

// Mean depth error, mean angle between normals, largest alpha error.
struct Errors {
    double abs_rel = 0, degrees = 0, alpha = 0;
};

// Depth and normals are compared in the foreground of the reference, or in the whole image if it is empty. Comparisons
// are written so that NaN never passes.
Errors errors(const dpt::Maps &maps, const float *depth, const float *normals, const float *alpha, std::size_t size) {
    Errors found;
    std::size_t foreground = 0, counted = 0;
    for (std::size_t i = 0; i < size; ++i) foreground += alpha[i] > 0.5F ? 1 : 0;
    for (std::size_t i = 0; i < size; ++i) {
        const double difference = std::abs(double{maps.alpha[i]} - alpha[i]);
        if (!(difference <= found.alpha)) found.alpha = difference;
        if (foreground > 0 && !(alpha[i] > 0.5F)) continue;
        ++counted;
        found.abs_rel += std::abs(double{maps.depth[i]} - depth[i]) / depth[i];
        const float *a = &maps.normals[3 * i], *b = &normals[3 * i];
        const double x = double{a[1]} * b[2] - double{a[2]} * b[1], y = double{a[2]} * b[0] - double{a[0]} * b[2];
        const double z = double{a[0]} * b[1] - double{a[1]} * b[0];
        const double dot = double{a[0]} * b[0] + double{a[1]} * b[1] + double{a[2]} * b[2];
        found.degrees += std::atan2(std::sqrt(x * x + y * y + z * z), dot) * 180 / std::acos(-1.0);
    }
    found.abs_rel /= static_cast<double>(counted);
    found.degrees /= static_cast<double>(counted);
    return found;
}

int check_reference(const dpt::Runtime &runtime, const std::map<std::string, Array> &reference) {
    const auto cases = static_cast<int>(reference.at("adversarial").shape.at(0));
    for (int i = 0; i < cases; ++i) {
        const std::string name = std::to_string(i);
        Array frame = reference.at(name + "/frame");
        frame.shape.insert(frame.shape.begin(), 1);
        const dpt::Maps maps = runtime.infer(image_of(frame, DPT_RGB));
        const auto map = [&](const char *head) { return reference.at(name + "/frame/" + head).as<float>("<f4"); };
        const Errors found = errors(maps, map("depth"), map("normals"), map("alpha"), maps.depth.size());
        std::printf("reference %d: AbsRel %.2e, mean angle %.2e degrees, alpha %.2e\n", i, found.abs_rel, found.degrees,
                    found.alpha);
        expect(found.abs_rel <= 1e-5, "reference " + name + ": depth exceeds its budget");
        expect(found.degrees <= 0.005, "reference " + name + ": normals exceed their budget");
        expect(found.alpha <= 1e-4, "reference " + name + ": alpha exceeds its budget");
    }
    return cases;
}

} // namespace

int main(int argc, char **argv) {
    try {
        if (argc != 3) throw std::runtime_error("usage: parity BUNDLE GOLDEN.npz");
        const std::string bundle = argv[1];
        dpt_options options = dpt_options_default();
        options.threads = 1;
        options.backend = DPT_BACKEND_ONNXRUNTIME_CPU;
        const dpt::Runtime runtime(bundle, options);
        const int golden = check_golden(runtime, read_npz(argv[2]));
        const int reference = check_reference(runtime, read_npz(bundle + "/reference.npz"));
        std::printf("%d golden cases, %d reference cases, %d failures\n", golden, reference, failures);
        return failures == 0 && golden > 0 && reference > 0 ? 0 : 1;
    } catch (const std::exception &error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
