// Errors inside the library. The C ABI (api.cpp) turns them into status codes and messages.
#pragma once

#include <locale>
#include <sstream>
#include <stdexcept>
#include <string>

#include "dpt_runtime.h"

namespace dpt_impl {

class Error : public std::runtime_error {
public:
    Error(dpt_status status, const std::string &message) : std::runtime_error(message), status(status) {}
    const dpt_status status;
};

// Concatenates the text of all arguments.
template <typename... Parts>
std::string concat(const Parts &...parts) {
    std::ostringstream stream;
    stream.imbue(std::locale::classic()); // without the thousands separators of the program's locale
    (stream << ... << parts);
    return stream.str();
}

// Throws Error with the concatenated arguments as its message.
template <typename... Parts>
[[noreturn]] void fail(dpt_status status, const Parts &...parts) {
    throw Error(status, concat(parts...));
}

// "a, b, c"
template <typename List>
std::string join(const List &list) {
    std::ostringstream stream;
    stream.imbue(std::locale::classic());
    bool first = true;
    for (const auto &item : list) {
        stream << (first ? "" : ", ") << item;
        first = false;
    }
    return stream.str();
}

} // namespace dpt_impl
