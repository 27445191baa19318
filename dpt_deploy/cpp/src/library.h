// A shared library that is opened at run time, so that the same build works on machines with and without it.
#pragma once

#include <string>
#include <vector>

namespace dpt_impl {

// Libraries are never closed, because their threads and thread-local objects may outlive this object.
class Library {
public:
    // Opens the first of `names` that can be opened. Throws Error(DPT_MISSING_LIBRARY) if there is none; its message
    // is `purpose` ("ONNX Runtime is needed to run ONNX graphs"), the errors of the dynamic linker, and `remedy`.
    Library(const std::vector<std::string> &names, const std::string &purpose, const std::string &remedy);

    const std::string &name() const { return name_; }

    // Throws Error(DPT_MISSING_LIBRARY) if the library does not export `symbol`.
    template <typename Function>
    Function *function(const char *symbol) const {
        return reinterpret_cast<Function *>(address(symbol));
    }

private:
    void *address(const char *symbol) const;

    std::string name_;
    void *handle_ = nullptr;
};

// The folder of the library or program that contains this code, without a trailing slash.
std::string own_folder();
// The option, if it is not NULL or empty; otherwise the environment variable, if it is set; otherwise "".
std::string option_or_environment(const char *option, const char *variable);

} // namespace dpt_impl
