// Failures inside the library: a status and an instruction. They become status codes at the C ABI (api.cpp).
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

// The arguments one after the other, as text.
template <typename... Parts>
std::string text(const Parts &...parts) {
    std::ostringstream stream;
    stream.imbue(std::locale::classic()); // the program's locale must not put separators into numbers
    (stream << ... << parts);
    return stream.str();
}

template <typename... Parts>
[[noreturn]] void fail(dpt_status status, const Parts &...parts) {
    throw Error(status, text(parts...));
}

// "a, b, c"
template <typename List>
std::string joined(const List &list) {
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
