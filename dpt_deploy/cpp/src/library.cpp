#include "library.h"

#include <cstdlib>
#include <dlfcn.h>

#include "error.h"

namespace dpt_impl {

Library::Library(const std::vector<std::string> &names, const std::string &purpose, const std::string &remedy) {
    std::string errors;
    for (const std::string &name : names) {
        handle_ = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (handle_ != nullptr) {
            name_ = name;
            return;
        }
        const char *error = dlerror();
        errors += (errors.empty() ? "" : "; ") + (error != nullptr ? std::string(error) : name);
    }
    fail(DPT_MISSING_LIBRARY, purpose, ", but it could not be loaded (", errors, "). ", remedy);
}

void *Library::address(const char *symbol) const {
    void *address = dlsym(handle_, symbol);
    if (address == nullptr) {
        fail(DPT_MISSING_LIBRARY, name_, " is not the expected library: it does not export ", symbol, ".");
    }
    return address;
}

std::string own_folder() {
    Dl_info info{};
    if (dladdr(reinterpret_cast<void *>(&own_folder), &info) == 0 || info.dli_fname == nullptr) return ".";
    const std::string path = info.dli_fname;
    const std::size_t slash = path.rfind('/');
    return slash == std::string::npos ? "." : path.substr(0, slash);
}

std::string option_or_environment(const char *option, const char *variable) {
    if (option != nullptr && *option != '\0') return option;
    const char *value = std::getenv(variable);
    return value != nullptr ? value : "";
}

} // namespace dpt_impl
