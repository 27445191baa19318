#include "bundle.h"

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <set>
#include <sys/stat.h>

#include "error.h"
#include "onnx_file.h"
#include "sha256.h"

namespace dpt_impl {
namespace {

constexpr const char *kManifest = "manifest.json";
constexpr int kFormat = 1;
constexpr const char *kParity = "parity.json";
constexpr const char *kCreate = "Create a bundle with: python -m dpt_deploy.export best_model.pth";
constexpr off_t kMaxManifestBytes = 16 << 20; // a typical manifest has 20 kB
const std::set<std::string> kKinds = {"onnx", "data", "engine", "cache", "reference", "report"};

// The path without symbolic links, or "" if there is no such file.
std::string real_path(const std::string &path) {
    const std::unique_ptr<char, void (*)(void *)> resolved(realpath(path.c_str(), nullptr), std::free);
    return resolved ? resolved.get() : "";
}

bool is_link(const std::string &path) {
    struct stat status {};
    return lstat(path.c_str(), &status) == 0 && S_ISLNK(status.st_mode);
}

bool is_sha256(const std::string &text) {
    return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

std::optional<std::string> optional_text(const Json &value, const char *key) {
    const auto found = value.find(key);
    if (found == value.end() || found->is_null()) return std::nullopt;
    return found->get<std::string>();
}

std::vector<std::int64_t> shape(const Json &value) {
    std::vector<std::int64_t> sizes;
    for (const Json &size : value) {
        if (!size.is_number_integer()) fail(DPT_BAD_BUNDLE, "profile: expected integers");
        sizes.push_back(size.get<std::int64_t>());
    }
    return sizes;
}

EngineDetails parse_engine(const Json &details) {
    EngineDetails engine;
    engine.builder = details.at("builder").get<std::string>();
    engine.builder_version = optional_text(details, "builder_version").value_or("");
    engine.compute_capability = optional_text(details, "compute_capability");
    engine.made_from = optional_text(details, "made_from");
    if (const auto serves = details.find("serves"); serves != details.end()) {
        if (!serves->is_array()) fail(DPT_BAD_BUNDLE, "serves: expected a list");
        for (const Json &capability : *serves) engine.serves.push_back(capability.get<std::string>());
    }
    const auto flag = [&details](const char *key) {
        const auto found = details.find(key);
        return found != details.end() && found->is_boolean() && found->get<bool>();
    };
    engine.version_compatible = flag("version_compatible");
    engine.hardware_compatible = flag("hardware_compatible");
    engine.stripped = optional_text(details, "weights") == "stripped";
    if (const auto profile = details.find("profile"); profile != details.end()) {
        if (!profile->is_object()) fail(DPT_BAD_BUNDLE, "profile: expected an object");
        for (const auto &[input, shapes] : profile->items()) {
            engine.profile[input] = {shape(shapes.at("min")), shape(shapes.at("max"))};
        }
    }
    if (const auto pixels = details.find("max_pixels"); pixels != details.end() && !pixels->is_null()) {
        if (!pixels->is_number_integer()) fail(DPT_BAD_BUNDLE, "max_pixels: expected an integer");
        engine.max_pixels = pixels->get<std::int64_t>();
    }
    return engine;
}

Artifact parse_artifact(const Json &entry) {
    if (!entry.is_object()) fail(DPT_BAD_BUNDLE, "artifacts: expected objects");
    Artifact artifact;
    artifact.file = entry.at("file").get<std::string>();
    artifact.kind = entry.at("kind").get<std::string>();
    artifact.sha256 = entry.at("sha256").get<std::string>();
    if (!entry.at("bytes").is_number_unsigned()) fail(DPT_BAD_BUNDLE, "artifacts: bytes: expected an unsigned integer");
    artifact.bytes = entry.at("bytes").get<std::uint64_t>();
    if (kKinds.count(artifact.kind) == 0) fail(DPT_BAD_BUNDLE, "artifacts: kind: received '", artifact.kind, "'");
    if (!is_sha256(artifact.sha256)) fail(DPT_BAD_BUNDLE, "artifacts: sha256: expected 64 hexadecimal digits");
    artifact.graph = optional_text(entry, "graph").value_or("");
    artifact.precision = optional_text(entry, "precision").value_or("");
    // A manifest is untrusted input: a name must not lead out of the bundle's folder.
    if (artifact.file.empty() || artifact.file == "." || artifact.file == ".." ||
        artifact.file.find_first_of(std::string("/\0", 2)) != std::string::npos) {
        fail(DPT_BAD_BUNDLE, "artifacts: expected the name of a file in the bundle's folder, received '", artifact.file,
             "'");
    }
    if (artifact.kind == "engine") artifact.engine = parse_engine(entry.at("details"));
    return artifact;
}

std::string read_manifest(const std::string &folder) {
    const std::string path = folder + "/" + kManifest;
    struct stat status {};
    if (stat(path.c_str(), &status) != 0 || !S_ISREG(status.st_mode)) {
        const bool exists = stat(folder.c_str(), &status) == 0;
        if (exists && S_ISREG(status.st_mode)) {
            const std::size_t slash = folder.rfind('/');
            const std::string parent = slash == std::string::npos ? "." : folder.substr(0, slash);
            const bool in_bundle = stat((parent + "/" + kManifest).c_str(), &status) == 0;
            fail(DPT_BAD_BUNDLE, folder, ": expected a bundle, which is a folder, but received a file. ",
                 in_bundle ? concat("Pass ", parent, ".") : kCreate);
        }
        fail(DPT_BAD_BUNDLE, folder, ": expected a bundle, but ",
             exists ? concat("it contains no ", kManifest) : "the folder does not exist", ". ", kCreate);
    }
    if (status.st_size > kMaxManifestBytes) {
        fail(DPT_BAD_BUNDLE, path, ": expected at most ", kMaxManifestBytes, " bytes, received ", status.st_size,
             ". Export the checkpoint again.");
    }
    std::ifstream file(path, std::ios::binary);
    std::string content(static_cast<std::size_t>(status.st_size), '\0');
    file.read(content.data(), status.st_size);
    if (!file) fail(DPT_BAD_BUNDLE, path, " cannot be read: ", std::strerror(errno), ". Check its permissions.");
    return content;
}

} // namespace

Bundle::Bundle(const std::string &folder) : Bundle(folder, read_manifest(folder)) {}

Bundle::Bundle(const std::string &folder, const std::string &manifest) : folder_(folder) {
    while (folder_.size() > 1 && folder_.back() == '/') folder_.pop_back();
    const std::string path = folder_ + "/" + kManifest;
    std::string cause;
    try {
        parse(manifest);
        return;
    } catch (const Error &error) {
        if (error.status != DPT_BAD_BUNDLE) throw;
        if (std::strncmp(error.what(), path.c_str(), path.size()) == 0) throw; // a complete message already
        cause = error.what();
    } catch (const Json::exception &error) {
        cause = error.what();
    }
    fail(DPT_BAD_BUNDLE, path, ": not a valid manifest of format ", kFormat, " (", cause,
         "). Export the checkpoint again.");
}

void Bundle::parse(const std::string &manifest) {
    const Json content = parse_json(manifest);
    const Json &format = content.at("format");
    if (format != kFormat) {
        fail(DPT_BAD_BUNDLE, folder_, "/", kManifest, ": expected manifest format ", kFormat, ", received ",
             format.is_structured() ? std::string(format.type_name()) : format.dump(-1, ' ', true),
             ". Export the checkpoint again with this version of dpt-deploy, or install the version that wrote it.");
    }
    const Json &artifacts = content.at("artifacts");
    if (!artifacts.is_array()) fail(DPT_BAD_BUNDLE, "artifacts: expected a list");
    for (const Json &entry : artifacts) artifacts_.push_back(parse_artifact(entry));
    contract_ = parse_contract(content.at("contract"));
    contract_json_ = content.at("contract").dump(2);
    checkpoint_ = "best_model.pth";
    const auto options = content.find("options");
    imported_ = options != content.end() && options->is_object() && options->contains("description");
    if (const auto source = content.find("checkpoint"); source != content.end() && source->is_object()) {
        checkpoint_ = optional_text(*source, "file").value_or(checkpoint_);
    }
}

bool Bundle::judged() const { return find(kParity) != nullptr; }

const Artifact *Bundle::find(const std::string &file) const {
    const auto found = std::find_if(artifacts_.begin(), artifacts_.end(),
                                    [&file](const Artifact &artifact) { return artifact.file == file; });
    return found != artifacts_.end() ? &*found : nullptr;
}

std::string Bundle::path(const Artifact &artifact) const {
    check_file(artifact, artifact);
    if (artifact.kind == "onnx") check_graph(artifact);
    return folder_ + "/" + artifact.file;
}

void Bundle::check_file(const Artifact &part, const Artifact &owner) const {
    check_size(part, owner);
    const std::string path = folder_ + "/" + part.file;
    if (sha256_of_file(path) != part.sha256) fail_modified(path, part, owner);
}

void Bundle::check_graph(const Artifact &artifact) const {
    const std::string path = folder_ + "/" + artifact.file;
    OnnxFile graph;
    try {
        graph = read_onnx_file(path);
    } catch (const Error &error) {
        fail(error.status, path, " is not a valid ONNX file: ", error.what(), ". ", remedy(artifact));
    }
    if (find(artifact.file + ".data") != nullptr) graph.external.insert(artifact.file + ".data");
    for (const std::string &name : graph.external) {
        const Artifact *part = find(name); // its name does not lead out of the folder
        if (part == nullptr) {
            fail(DPT_BAD_BUNDLE, path, " reads weights from '", name, "', which ", kManifest, " does not list. ",
                 remedy(artifact));
        }
        check_file(*part, artifact);
    }
    const auto embedded = graph.metadata.find("contract");
    if (embedded == graph.metadata.end()) {
        fail(DPT_CONTRACT_ERROR, path, ": the graph embeds no contract. ", remedy(artifact));
    }
    Contract contract;
    try {
        contract = parse_contract(embedded->second);
    } catch (const Error &error) {
        fail(DPT_CONTRACT_ERROR, path, ": the contract embedded in the graph is not valid (", error.what(), "). ",
             remedy(artifact));
    }
    if (!(contract == contract_)) {
        fail(DPT_CONTRACT_ERROR, path, ": the contract embedded in the graph differs from the one in ", kManifest,
             ". ", remedy(artifact));
    }
}

std::vector<char> Bundle::read(const Artifact &artifact) const {
    check_size(artifact, artifact);
    const std::string path = folder_ + "/" + artifact.file;
    std::vector<char> content(artifact.bytes);
    std::ifstream file(path, std::ios::binary);
    file.read(content.data(), static_cast<std::streamsize>(content.size()));
    if (!file) fail(DPT_BAD_BUNDLE, path, " cannot be read: ", std::strerror(errno), ". Check its permissions.");
    if (sha256(content.data(), content.size()) != artifact.sha256) fail_modified(path, artifact, artifact);
    return content;
}

void Bundle::check_size(const Artifact &part, const Artifact &owner) const {
    const std::string path = folder_ + "/" + part.file;
    struct stat status {};
    if (stat(path.c_str(), &status) != 0 || !S_ISREG(status.st_mode)) {
        fail(DPT_BAD_BUNDLE, path, " is missing from the bundle. ", remedy(owner));
    }
    if (is_link(path)) {
        const std::string target = real_path(path);
        if (target.substr(0, target.rfind('/')) != real_path(folder_)) {
            fail(DPT_BAD_BUNDLE, path, " is a symbolic link to a file outside the bundle; copy the bundle with cp -rL. ",
                 remedy(owner));
        }
    }
    if (static_cast<std::uint64_t>(status.st_size) != part.bytes) fail_modified(path, part, owner);
}

void Bundle::fail_modified(const std::string &path, const Artifact &part, const Artifact &owner) const {
    fail(DPT_BAD_BUNDLE, path, " does not match ", kManifest, " (expected SHA-256 ", part.sha256.substr(0, 12),
         "...): the file was modified, truncated or replaced. ", remedy(owner));
}

std::string Bundle::build_command() const { return "python -m dpt_deploy.build " + folder_; }

std::string Bundle::remedy(const Artifact &artifact) const {
    if (artifact.kind == "engine") return "Build it again: " + build_command();
    const char *again = imported_ ? "Import again: python -m dpt_deploy.export.importing "
                                  : "Export again: python -m dpt_deploy.export ";
    return again + checkpoint_ + " --out " + folder_;
}

} // namespace dpt_impl
