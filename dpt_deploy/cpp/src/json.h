// The JSON type, which preserves the order of keys, and a parser with a limit on nesting.
#pragma once

#include <string>

#include <nlohmann/json.hpp>

#include "error.h"

namespace dpt_impl {

using Json = nlohmann::ordered_json;

constexpr int kMaxJsonDepth = 64; // a manifest has about 10 levels

// Parses JSON. Throws Error(DPT_BAD_BUNDLE) before parsing if it is nested too deeply, because the JSON library writes,
// copies and frees nested values by recursion; throws Json::exception if it is not valid.
inline Json parse_json(const std::string &text) {
    int depth = 0;
    bool quoted = false;
    for (std::size_t i = 0; i < text.size(); ++i) {
        const char c = text[i];
        if (quoted) {
            if (c == '\\') ++i;
            quoted = c != '"';
        } else if (c == '"') {
            quoted = true;
        } else if (c == '[' || c == '{') {
            if (++depth > kMaxJsonDepth) fail(DPT_BAD_BUNDLE, "nested more than ", kMaxJsonDepth, " levels deep");
        } else if (c == ']' || c == '}') {
            --depth;
        }
    }
    return Json::parse(text);
}

} // namespace dpt_impl
