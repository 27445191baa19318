// The contract of a bundle: its inputs and outputs, as stored in the manifest and in each graph.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "dpt_runtime.h"
#include "json.h"

namespace dpt_impl {

struct Contract {
    std::array<std::int64_t, 2> input_size{}; // height and width of the network's input [pixels]
    std::array<double, 3> mean{}, std{};      // of RGB in [0, 1]
    std::string resize;                       // "stretch" or "letterbox"
    std::vector<std::string> heads;           // a non-empty subset of depth, normals, alpha, in this order
    std::string depth;                        // what depth is, one of kDepths in contract.cpp

    bool operator==(const Contract &other) const {
        return input_size == other.input_size && mean == other.mean && std == other.std && resize == other.resize &&
               heads == other.heads && depth == other.depth;
    }
    bool has(const std::string &head) const;
    std::uint32_t head_bits() const; // DPT_HAS_*
};

// Throws Error(DPT_BAD_BUNDLE) for a missing or malformed field.
Contract parse_contract(const Json &value);
Contract parse_contract(const std::string &json);

} // namespace dpt_impl
