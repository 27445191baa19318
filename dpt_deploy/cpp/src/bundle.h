// A bundle: the folder that one export writes, described by its manifest. The checks are those of dpt_deploy/core.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "contract.h"

namespace dpt_impl {

// The smallest and largest shape that an engine accepts for one input.
struct ShapeRange {
    std::vector<std::int64_t> min, max;
};

// The manifest's description of an engine.
struct EngineDetails {
    std::string builder, builder_version;
    std::optional<std::string> compute_capability, made_from;
    std::vector<std::string> serves; // compute capabilities of the GPUs that it runs on; empty if not known
    std::map<std::string, ShapeRange> profile;
    std::optional<std::int64_t> max_pixels; // largest batch * height * width
    bool version_compatible = false;        // also runs on later versions of its builder
    bool hardware_compatible = false;       // runs on any GPU from Ampere on
    bool stripped = false;                  // contains no weights
};

// One file of a bundle, as the manifest describes it.
struct Artifact {
    std::string file, kind, sha256;
    std::uint64_t bytes = 0;
    std::string graph, precision; // "" if not applicable
    EngineDetails engine;         // set if kind is "engine"
};

class Bundle {
public:
    // Reads the manifest in `folder`, but no other file. Throws Error(DPT_BAD_BUNDLE).
    explicit Bundle(const std::string &folder);
    // Parses a manifest in memory, for tests.
    Bundle(const std::string &folder, const std::string &manifest);

    const std::string &folder() const { return folder_; }
    const Contract &contract() const { return contract_; }
    const std::string &contract_json() const { return contract_json_; }
    const std::vector<Artifact> &artifacts() const { return artifacts_; }

    // The path of an artefact, after checking the hash of its file and, of a graph, its external data and contract.
    // Throws Error: DPT_BAD_BUNDLE if a file is missing, not listed, outside the folder or modified; DPT_CONTRACT_ERROR
    // if a graph embeds no contract, or another one than the manifest.
    std::string path(const Artifact &artifact) const;
    // The content of an artefact, after checking the hash of the returned bytes. Throws Error(DPT_BAD_BUNDLE).
    std::vector<char> read(const Artifact &artifact) const;
    // Whether the bundle has a parity verdict. It has none if its export was interrupted or its graphs were replaced.
    bool judged() const;

    // The command that builds the engines of this bundle.
    std::string build_command() const;

private:
    void parse(const std::string &manifest);
    // The artefact of this name, or nullptr.
    const Artifact *find(const std::string &file) const;
    // Checks the size and hash of a file.
    void check_file(const Artifact &part, const Artifact &owner) const;
    // Checks the external data and the embedded contract of an ONNX file whose hash is correct.
    void check_graph(const Artifact &artifact) const;
    // `owner` is the artefact that `part` belongs to: itself, or the graph of external data.
    void check_size(const Artifact &part, const Artifact &owner) const;
    [[noreturn]] void fail_modified(const std::string &path, const Artifact &part, const Artifact &owner) const;
    // What to do about an unusable artefact.
    std::string remedy(const Artifact &artifact) const;

    std::string folder_, contract_json_, checkpoint_;
    bool imported_ = false; // made from an ONNX file of another project, not from a checkpoint
    Contract contract_;
    std::vector<Artifact> artifacts_;
};

} // namespace dpt_impl
