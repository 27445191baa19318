// Reads .npz files of numpy.savez: uncompressed zip archives of .npy arrays in C order.
#pragma once

#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

struct Array {
    std::string dtype; // NumPy's type string, such as <f4 or |u1
    std::vector<std::int64_t> shape;
    std::vector<char> bytes;

    template <typename T>
    const T *as(const char *expected) const {
        if (dtype != expected) throw std::runtime_error(std::string("expected dtype ") + expected + ", found " + dtype);
        return reinterpret_cast<const T *>(bytes.data());
    }
    std::int64_t size() const {
        std::int64_t count = 1;
        for (const std::int64_t axis : shape) count *= axis;
        return count;
    }
};

inline std::uint64_t little_endian(const std::vector<char> &data, std::size_t at, int bytes) {
    if (at + static_cast<std::size_t>(bytes) > data.size()) throw std::runtime_error("npz: truncated");
    std::uint64_t value = 0;
    for (int i = bytes - 1; i >= 0; --i) {
        value = value << 8U | static_cast<unsigned char>(data[at + static_cast<std::size_t>(i)]);
    }
    return value;
}

inline Array parse_npy(const char *data, std::size_t size) {
    if (size < 10 || std::memcmp(data, "\x93NUMPY\x01", 7) != 0) throw std::runtime_error("npy: not version 1.0");
    const std::size_t length = static_cast<unsigned char>(data[8]) | static_cast<std::size_t>(
                                   static_cast<unsigned char>(data[9])) << 8U;
    const std::string header(data + 10, length);
    Array array;
    const std::size_t descr = header.find("'descr': '") + 10;
    array.dtype = header.substr(descr, header.find('\'', descr) - descr);
    if (header.find("'fortran_order': False") == std::string::npos) throw std::runtime_error("npy: Fortran order");
    std::size_t at = header.find("'shape': (") + 10;
    while (header[at] != ')') {
        if (header[at] == ',' || header[at] == ' ') {
            ++at;
            continue;
        }
        std::size_t used = 0;
        array.shape.push_back(std::stoll(header.substr(at), &used));
        at += used;
    }
    array.bytes.assign(data + 10 + length, data + size);
    return array;
}

inline std::map<std::string, Array> read_npz(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    const std::vector<char> data{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    if (data.size() < 22) throw std::runtime_error(path + ": cannot be read");
    // An archive without a comment ends with a 22-byte record, which contains the position of the directory.
    const std::size_t end = data.size() - 22;
    if (little_endian(data, end, 4) != 0x06054b50) throw std::runtime_error(path + ": not a zip archive");
    const std::uint64_t count = little_endian(data, end + 10, 2);
    std::size_t entry = little_endian(data, end + 16, 4);
    std::map<std::string, Array> arrays;
    for (std::uint64_t i = 0; i < count; ++i) {
        if (little_endian(data, entry, 4) != 0x02014b50 || little_endian(data, entry + 10, 2) != 0) {
            throw std::runtime_error(path + ": not a directory entry of a stored file");
        }
        const std::size_t size = little_endian(data, entry + 24, 4), name = little_endian(data, entry + 28, 2);
        const std::size_t extra = little_endian(data, entry + 30, 2), comment = little_endian(data, entry + 32, 2);
        const std::size_t local = little_endian(data, entry + 42, 4);
        const std::string key(&data[entry + 46], name);
        const std::size_t begin = local + 30 + little_endian(data, local + 26, 2) + little_endian(data, local + 28, 2);
        if (begin + size > data.size()) throw std::runtime_error(path + ": truncated");
        if (key.size() < 4) throw std::runtime_error(path + ": invalid name");
        arrays[key.substr(0, key.size() - 4)] = parse_npy(&data[begin], size); // without .npy
        entry += 46 + name + extra + comment;
    }
    return arrays;
}
