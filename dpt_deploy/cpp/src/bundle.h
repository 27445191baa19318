// One export's folder: the manifest, and the way to each artefact. Checks and words follow dpt_deploy/bundle.py.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "contract.h"

namespace dpt_impl {

// The shapes that an engine takes for one input.
struct Range {
    std::vector<std::int64_t> min, max;
};

// What the manifest says of an engine.
struct EngineDetails {
    std::string builder, builder_version;
    std::optional<std::string> compute_capability, made_from;
    std::map<std::string, Range> profile;
    std::optional<std::int64_t> max_pixels; // batch times area
    bool version_compatible = false;        // runs on later versions of its builder too
    bool hardware_compatible = false;       // runs on Ampere and newer
    bool stripped = false;                  // holds no weights
};

// One file of a bundle, as the manifest describes it.
struct Artifact {
    std::string file, kind, sha256;
    std::uint64_t bytes = 0;
    std::string graph, precision; // "" for what has none
    EngineDetails engine;         // of an engine alone
};

class Bundle {
public:
    // Reads the manifest in `folder`. Throws Error(DPT_BAD_BUNDLE); file hashes are checked by path().
    explicit Bundle(const std::string &folder);
    // From a manifest in memory, for tests.
    Bundle(const std::string &folder, const std::string &manifest);

    const std::string &folder() const { return folder_; }
    const Contract &contract() const { return contract_; }
    const std::string &contract_json() const { return contract_json_; }
    const std::vector<Artifact> &artifacts() const { return artifacts_; }

    // The artefact's file, after checking its hash and that of its external data. Throws Error(DPT_BAD_BUNDLE).
    std::string path(const Artifact &artifact) const;
    // The content of a file, whose hash is checked on the very bytes that are returned.
    std::vector<char> read(const Artifact &artifact) const;
    // Throws Error(DPT_CONTRACT_ERROR) unless the contract inside an ONNX file is the manifest's.
    void check_contract(const std::string &embedded, const std::string &file) const;

    std::string rebuild_command() const;

private:
    void parse(const std::string &manifest);
    void check_size(const Artifact &artifact, const Artifact &blamed) const;
    [[noreturn]] void changed(const std::string &path, const Artifact &part, const Artifact &blamed) const;
    std::string remedy(const Artifact *artifact) const;

    std::string folder_, contract_json_, checkpoint_;
    Contract contract_;
    std::vector<Artifact> artifacts_;
};

} // namespace dpt_impl
