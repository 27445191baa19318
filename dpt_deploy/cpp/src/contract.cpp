#include "contract.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "error.h"

namespace dpt_impl {
namespace {

const std::vector<std::string> kHeads = {"depth", "normals", "alpha"};
const std::vector<std::string> kDepths = {"z-depth in metres", "relative depth without unit, larger is farther"};
constexpr std::int64_t kMaxInputSize = 1 << 16; // [pixels]

template <typename T, std::size_t N>
std::array<T, N> numbers(const Json &value, const char *field) {
    const Json &list = value.at(field);
    if (!list.is_array() || list.size() != N) fail(DPT_BAD_BUNDLE, "contract: ", field, ": expected ", N, " numbers");
    std::array<T, N> result{};
    for (std::size_t i = 0; i < N; ++i) {
        if (std::is_integral_v<T> ? !list[i].is_number_integer() : !list[i].is_number()) {
            fail(DPT_BAD_BUNDLE, "contract: ", field, ": expected ", N, std::is_integral_v<T> ? " integers" : " numbers");
        }
        const double number = list[i].template get<double>();
        if (!std::isfinite(number) || std::abs(number) > 1e9) {
            fail(DPT_BAD_BUNDLE, "contract: ", field, ": number out of range");
        }
        result[i] = static_cast<T>(number);
    }
    return result;
}

} // namespace

bool Contract::has(const std::string &head) const { return std::find(heads.begin(), heads.end(), head) != heads.end(); }

std::uint32_t Contract::head_bits() const {
    return (has("depth") ? DPT_HAS_DEPTH : 0U) | (has("normals") ? DPT_HAS_NORMALS : 0U) |
           (has("alpha") ? DPT_HAS_ALPHA : 0U);
}

Contract parse_contract(const Json &value) {
    Contract contract;
    try {
        contract.input_size = numbers<std::int64_t, 2>(value, "input_size");
        contract.mean = numbers<double, 3>(value, "mean");
        contract.std = numbers<double, 3>(value, "std");
        contract.resize = value.at("resize").get<std::string>();
        contract.heads = value.at("heads").get<std::vector<std::string>>();
        contract.depth = value.contains("depth") ? value.at("depth").get<std::string>() : kDepths[0];
    } catch (const Json::exception &error) {
        fail(DPT_BAD_BUNDLE, "contract: expected the fields input_size, mean, std, resize, heads (", error.what(), ")");
    }
    for (const std::int64_t size : contract.input_size) {
        if (size < 1 || size > kMaxInputSize) {
            fail(DPT_BAD_BUNDLE, "contract: input_size: expected 1 to ", kMaxInputSize, " pixels, received ", size);
        }
    }
    std::vector<std::string> ordered;
    for (const std::string &head : kHeads) {
        if (contract.has(head)) ordered.push_back(head);
    }
    if (contract.heads.empty() || contract.heads != ordered) {
        fail(DPT_BAD_BUNDLE, "contract: heads: expected a non-empty subset of ", join(kHeads),
             ", in this order, received ", contract.heads.empty() ? "nothing" : join(contract.heads));
    }
    if (contract.resize != "stretch" && contract.resize != "letterbox") {
        fail(DPT_BAD_BUNDLE, "contract: resize: expected stretch or letterbox, received '", contract.resize, "'");
    }
    if (std::find(kDepths.begin(), kDepths.end(), contract.depth) == kDepths.end()) {
        fail(DPT_BAD_BUNDLE, "contract: depth: expected '", kDepths[0], "' or '", kDepths[1], "', received '",
             contract.depth, "'");
    }
    return contract;
}

Contract parse_contract(const std::string &json) {
    try {
        return parse_contract(parse_json(json));
    } catch (const Json::exception &error) {
        fail(DPT_BAD_BUNDLE, "contract: not valid JSON: ", error.what());
    }
}

} // namespace dpt_impl
