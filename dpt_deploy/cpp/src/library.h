// A shared library opened at run time, so that one build serves machines with and without it.
#pragma once

#include <string>
#include <vector>

namespace dpt_impl {

// Open libraries stay open until the process ends: their threads and thread-local objects may outlive any handle.
class Library {
public:
    // The first of `names` that can be opened. Throws Error(DPT_MISSING_LIBRARY) with the linker's words; `needed`
    // begins the sentence ("ONNX Runtime is needed to run ONNX graphs") and `remedy` ends it.
    Library(const std::vector<std::string> &names, const std::string &needed, const std::string &remedy);

    const std::string &name() const { return name_; }

    // Throws Error(DPT_MISSING_LIBRARY) for a library without this symbol.
    template <typename Function>
    Function *function(const char *symbol) const {
        return reinterpret_cast<Function *>(address(symbol));
    }

private:
    void *address(const char *symbol) const;

    std::string name_;
    void *handle_ = nullptr;
};

// The folder that holds this library (or program, where it is linked in), without a slash at the end.
std::string own_folder();
// An option, or else the environment variable, or else "".
std::string option_or_environment(const char *option, const char *variable);

} // namespace dpt_impl
