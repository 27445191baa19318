// What an ONNX file says about itself. A bundle checks it before any library reads the file.
#pragma once

#include <map>
#include <set>
#include <string>

namespace dpt_impl {

struct OnnxFile {
    std::map<std::string, std::string> metadata; // of the model, such as its contract
    std::set<std::string> external;              // every external file that a tensor names, as written in the file
};

// Throws Error(DPT_BAD_BUNDLE) with the cause, without the file's name, if `path` is not a valid ONNX file.
OnnxFile read_onnx_file(const std::string &path);

} // namespace dpt_impl
